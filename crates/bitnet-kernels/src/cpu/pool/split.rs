//! Data cut into parts that different threads may use at the same time.
//!
//! [`Split`] is the one promise behind the thread pool: parts do not overlap. Everything here keeps it, so code that
//! computes combines these and stays safe.

use std::marker::PhantomData;
use std::ops::Range;

/// Data that falls into numbered parts.
///
/// # Safety
/// Parts of different numbers may be used by different threads at the same time.
pub unsafe trait Split: Sync {
    /// One part.
    type Part;

    /// Number of parts.
    fn parts(&self) -> usize;

    /// A part.
    ///
    /// # Safety
    /// `index` is less than [`Split::parts`], and no index is asked for twice.
    unsafe fn part(&self, index: usize) -> Self::Part;
}

/// All parts, for those who hand them out in another way.
pub fn each<S: Split>(parts: S) -> impl Iterator<Item = S::Part> {
    // SAFETY: each index occurs once, and is in bounds; `parts` is used up, so nobody else asks for a part.
    (0..parts.parts()).map(move |index| unsafe { parts.part(index) })
}

// SAFETY: a number can be used by anyone.
unsafe impl Split for Range<usize> {
    type Part = usize;

    fn parts(&self) -> usize {
        self.len()
    }

    unsafe fn part(&self, index: usize) -> usize {
        self.start + index
    }
}

/// A slice in pieces of equal length; see [`items`] and [`chunks`].
pub struct Chunks<'a, T> {
    first: *mut T,
    len: usize,
    chunk: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: all that is done with a shared reference is handing out disjoint pieces, and `T: Send` lets them move.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

/// Cuts a slice into pieces of `chunk` elements; the last may be shorter.
///
/// # Panics
/// If `chunk` is 0.
pub fn chunks<T>(slice: &mut [T], chunk: usize) -> Chunks<'_, T> {
    assert!(chunk > 0);
    Chunks { first: slice.as_mut_ptr(), len: slice.len(), chunk, _slice: PhantomData }
}

// SAFETY: pieces of different numbers do not overlap.
unsafe impl<'a, T: Send> Split for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn parts(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        let start = index * self.chunk;
        let len = self.chunk.min(self.len - start);
        // SAFETY: by the caller's promise `start` is in bounds, `len` ends at the slice's end at most, and nobody else has
        // this piece; the slice stays borrowed for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), len) }
    }
}

/// The elements of a slice one by one; see [`items`].
pub struct Items<'a, T>(Chunks<'a, T>);

/// Cuts a slice into its elements.
pub fn items<T>(slice: &mut [T]) -> Items<'_, T> {
    Items(chunks(slice, 1))
}

// SAFETY: elements do not overlap.
unsafe impl<'a, T: Send> Split for Items<'a, T> {
    type Part = &'a mut T;

    fn parts(&self) -> usize {
        self.0.parts()
    }

    unsafe fn part(&self, index: usize) -> &'a mut T {
        // SAFETY: as promised by the caller; a piece of one element has a first.
        unsafe { &mut self.0.part(index)[0] }
    }
}

// SAFETY: an index is given out once, so it is for both.
unsafe impl<A: Split, B: Split> Split for (A, B) {
    type Part = (A::Part, B::Part);

    fn parts(&self) -> usize {
        assert_eq!(self.0.parts(), self.1.parts(), "what goes together has as many parts");
        self.0.parts()
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        // SAFETY: as promised by the caller.
        unsafe { (self.0.part(index), self.1.part(index)) }
    }
}

/// The parts of one thing, then those of another.
pub struct Chain<A, B>(pub A, pub B);

/// A part of a [`Chain`].
pub enum Either<A, B> {
    /// Of its first half.
    First(A),
    /// Of its second half.
    Second(B),
}

// SAFETY: an index is given out once, so it is within its half.
unsafe impl<A: Split, B: Split> Split for Chain<A, B> {
    type Part = Either<A::Part, B::Part>;

    fn parts(&self) -> usize {
        self.0.parts() + self.1.parts()
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        let first = self.0.parts();
        // SAFETY: as promised by the caller.
        unsafe {
            match index < first {
                true => Either::First(self.0.part(index)),
                false => Either::Second(self.1.part(index - first)),
            }
        }
    }
}

/// Some columns of a row-major matrix, writable while other threads write other columns.
pub struct Stripe<'a> {
    first: *mut f32,
    width: usize,
    rows: usize,
    columns: Range<usize>,
    _matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a stripe is an exclusive borrow of its columns: `Stripes` makes them disjoint.
unsafe impl Send for Stripe<'_> {}

impl Stripe<'_> {
    /// Which columns of the matrix these are.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// This stripe's part of one row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: `stripes` checked that the matrix has `rows × width` elements and that `columns` end at `width` at most, so
        // the range lies within it; no other stripe has these columns, and `&mut self` excludes a second slice from this one.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.first.add(row * self.width + self.columns.start),
                self.columns.len(),
            )
        }
    }
}

/// A matrix in stripes; see [`stripes`].
pub struct Stripes<'a> {
    first: *mut f32,
    width: usize,
    rows: usize,
    columns: usize,
    _matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: all that is done with a shared reference is handing out disjoint stripes.
unsafe impl Sync for Stripes<'_> {}

/// Cuts a row-major matrix `[rows, width]` into stripes of `columns` columns; the last may be narrower.
///
/// # Panics
/// If `matrix` is not a whole number of rows or `columns` is 0.
pub fn stripes(matrix: &mut [f32], width: usize, columns: usize) -> Stripes<'_> {
    assert!(width > 0 && columns > 0 && matrix.len().is_multiple_of(width));
    let (first, rows) = (matrix.as_mut_ptr(), matrix.len() / width);
    Stripes { first, width, rows, columns, _matrix: PhantomData }
}

impl<'a> Stripes<'a> {
    /// One after the other.
    pub fn all(self) -> impl Iterator<Item = Stripe<'a>> {
        // SAFETY: every index is in bounds and occurs once.
        (0..self.parts()).map(move |index| unsafe { self.part(index) })
    }
}

// SAFETY: stripes of different numbers have no column in common.
unsafe impl<'a> Split for Stripes<'a> {
    type Part = Stripe<'a>;

    fn parts(&self) -> usize {
        self.width.div_ceil(self.columns)
    }

    unsafe fn part(&self, index: usize) -> Stripe<'a> {
        let start = index * self.columns;
        let columns = start..self.width.min(start + self.columns);
        Stripe {
            first: self.first,
            width: self.width,
            rows: self.rows,
            columns,
            _matrix: PhantomData,
        }
    }
}
