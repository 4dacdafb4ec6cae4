//! Memory that the workers of a pool share, each writing its own part.

use std::cell::UnsafeCell;
use std::ops::Range;

/// A fixed buffer. Reading and writing is `unsafe`, since nothing here knows who writes what.
pub(super) struct Cells<T>(Box<[UnsafeCell<T>]>);

// SAFETY: the methods that reach the values are unsafe, and ask for what `Sync` would promise.
unsafe impl<T: Send> Sync for Cells<T> {}

impl<T: bytemuck::Zeroable + Copy> Cells<T> {
    /// `len` zeros.
    pub(super) fn new(len: usize) -> Cells<T> {
        let zeros: Vec<T> = vec![T::zeroed(); len];
        let zeros = Box::into_raw(zeros.into_boxed_slice());
        // SAFETY: `UnsafeCell<T>` has the layout of `T`.
        Cells(unsafe { Box::from_raw(zeros as *mut [UnsafeCell<T>]) })
    }

    /// Values.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first value.
    pub(super) fn as_ptr(&self) -> *mut T {
        UnsafeCell::raw_get(self.0.as_ptr())
    }

    /// Some values.
    ///
    /// # Safety
    /// Nobody may write them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn get(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        // SAFETY: within the buffer; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(range.start), range.len()) }
    }

    /// Some values, to write.
    ///
    /// # Safety
    /// Nobody else may read or write them meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the caller vouches that nobody else is there")]
    pub(super) unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        // SAFETY: within the buffer; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().add(range.start), range.len()) }
    }

    /// All values.
    pub(super) fn all(&mut self) -> &mut [T] {
        // SAFETY: `&mut self`: nobody else is there.
        unsafe { self.get_mut(0..self.0.len()) }
    }
}
