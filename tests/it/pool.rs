//! The pool of the CPU backend.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use gridmill::backend::cpu::Pool;

#[test]
fn pool_runs_every_piece_once_and_in_step() {
    for workers in [1, 2, 5] {
        let mut pool = Pool::new(workers).unwrap();
        let counts: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..200 {
            pool.run(&|worker| {
                for step in 0..5 {
                    for piece in worker.pieces(counts.len()) {
                        counts[piece].fetch_add(1, Ordering::Relaxed);
                    }
                    worker.barrier();
                    let seen = counts[step].load(Ordering::Relaxed);
                    worker.barrier();
                    assert_eq!(counts[96].load(Ordering::Relaxed) % 5, seen % 5);
                    worker.barrier();
                }
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1000));
    }
}

#[test]
fn pool_survives_a_panic() {
    let mut pool = Pool::new(3).unwrap();
    for guilty in 0..3 {
        let failure = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                worker.barrier();
                if worker.index() == guilty {
                    std::panic::resume_unwind(Box::new(guilty));
                }
                worker.barrier();
            });
        }));
        assert_eq!(failure.unwrap_err().downcast_ref(), Some(&guilty));
        let count = AtomicUsize::new(0);
        pool.run(&|worker| {
            worker.barrier();
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }
}
