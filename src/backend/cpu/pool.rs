//! Threads that stay: one wake-up per run of a plan, a barrier between ops, no allocation.
//!
//! ```text
//! worker:   wait for a job; run it; say that it is done
//! caller:   hand the job out; run it too; wait until all are done
//! ```
//!
//! A wait spins for some microseconds, since the next op is nearly always that close; then offers
//! its core to others; then sleeps, so that a stalled neighbour costs nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{At, Result};

/// Looks at a condition this often before the core is offered to others: some 50 microseconds.
const SPINS: usize = 2000;
/// Offers the core this often before it sleeps.
const YIELDS: usize = 20;

type Job = dyn Fn(&Worker) + Sync;

/// The threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// One of the threads that run a job.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
}

struct Shared {
    workers: usize,
    /// Jobs handed out so far; a worker waits for the next.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<*const Job>>,
    /// Threads that have finished the job.
    finished: AtomicUsize,
    stop: AtomicBool,
    /// Barriers passed, and who has come to the next.
    barriers: AtomicUsize,
    arrived: AtomicUsize,
    /// The next piece of work between two barriers.
    next: AtomicUsize,
    failed: AtomicBool,
    failure: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `job` is written while no worker runs, before `epoch` tells them to read it.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`; the pointer in `job` is followed only while its owner waits in `run`.
unsafe impl Send for Shared {}

/// The payload of workers that give up because another one panicked.
struct GaveUp;

impl Pool {
    /// As many threads as asked for, the caller's among them; at least one.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(workers: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            workers: workers.max(1),
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            barriers: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let mut pool = Pool { shared, threads: Vec::new() };
        for index in 1..pool.shared.workers {
            let shared = pool.shared.clone();
            let builder = thread::Builder::new().name(format!("worker {index}"));
            let thread = builder.spawn(move || shared.work(index)).at("starting a thread")?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads that run a job.
    pub fn workers(&self) -> usize {
        self.shared.workers
    }

    /// Runs a job on every thread.
    ///
    /// # Panics
    /// If the job does, on any thread, after all have ended.
    pub fn run(&mut self, job: &(dyn Fn(&Worker) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; `run` returns after the last use.
        let pointer =
            unsafe { std::mem::transmute::<*const (dyn Fn(&Worker) + Sync), *const Job>(job) };
        // SAFETY: `&mut self`: no job is running, so that no worker reads.
        unsafe { *shared.job.get() = Some(pointer) };
        shared.next.store(0, SeqCst);
        shared.finished.store(0, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        shared.wake();
        shared.run_job(job, 0);
        shared.wait(|| shared.finished.load(SeqCst) == shared.workers);
        if shared.failed.swap(false, SeqCst) {
            shared.arrived.store(0, SeqCst);
            let failure = lock(&shared.failure).take();
            resume_unwind(failure.unwrap_or_else(|| Box::new("a worker gave up")));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its jobs; there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

impl Worker<'_> {
    /// Which one: 0 is the caller.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared.workers
    }

    /// The next piece of work that nobody has; starts at 0 after every barrier.
    pub fn take(&self) -> usize {
        self.shared.next.fetch_add(1, SeqCst)
    }

    /// The pieces `0..count` that nobody has yet, one after the other.
    pub fn pieces(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::from_fn(move || Some(self.take()).filter(|&piece| piece < count))
    }

    /// This worker's share of `0..count`, the same every time.
    pub fn share(&self, count: usize) -> impl Iterator<Item = usize> {
        (self.index..count).step_by(self.shared.workers)
    }

    /// Waits until every worker is here. What they wrote before can be read after.
    pub fn barrier(&self) {
        let shared = self.shared;
        if shared.workers == 1 {
            shared.next.store(0, SeqCst);
            return;
        }
        let passed = shared.barriers.load(SeqCst);
        if shared.arrived.fetch_add(1, SeqCst) + 1 == shared.workers {
            shared.arrived.store(0, SeqCst);
            shared.next.store(0, SeqCst);
            shared.barriers.fetch_add(1, SeqCst);
            shared.wake();
        } else {
            let failed = || shared.failed.load(SeqCst);
            shared.wait(|| shared.barriers.load(SeqCst) != passed || failed());
            if failed() {
                resume_unwind(Box::new(GaveUp));
            }
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        for epoch in 1.. {
            self.wait(|| self.epoch.load(SeqCst) >= epoch);
            if self.stop.load(SeqCst) {
                return;
            }
            // SAFETY: the caller of `run` wrote the job before the epoch, and waits for `finished`.
            let job = unsafe { &*(*self.job.get()).expect("a job comes with its epoch") };
            self.run_job(job, index);
        }
    }

    fn run_job(&self, job: &(dyn Fn(&Worker) + Sync), index: usize) {
        let worker = Worker { shared: self, index };
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !failure.is::<GaveUp>() {
                lock(&self.failure).get_or_insert(failure);
            }
            self.failed.store(true, SeqCst);
            self.wake();
        }
        if self.finished.fetch_add(1, SeqCst) + 1 == self.workers {
            self.wake();
        }
    }

    fn wait(&self, ready: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        for _ in 0..YIELDS {
            if ready() {
                return;
            }
            thread::yield_now();
        }
        let mut bed = lock(&self.bed);
        // Whoever makes the condition true then looks for sleepers: it sees this one, or this one
        // sees the condition.
        self.sleepers.fetch_add(1, SeqCst);
        while !ready() {
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.load(SeqCst) != 0 {
            // The lock is free only once the sleeper waits.
            drop(lock(&self.bed));
            self.alarm.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
