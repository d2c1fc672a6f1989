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

/// The parts of two things, those of the second evenly among those of the first.
pub struct Interleave<A, B>(pub A, pub B);

/// A part of an [`Interleave`].
pub enum Either<A, B> {
    /// Of the first thing.
    First(A),
    /// Of the second.
    Second(B),
}

// SAFETY: indices up to one hold as many parts of the second thing as `before` says, and as many of the first as remain; both
// counts grow with the index, one at a time, so every part is given out once.
unsafe impl<A: Split, B: Split> Split for Interleave<A, B> {
    type Part = Either<A::Part, B::Part>;

    fn parts(&self) -> usize {
        self.0.parts() + self.1.parts()
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        let before = |index: usize| index * self.1.parts() / self.parts();
        let second = before(index);
        // SAFETY: as said above.
        unsafe {
            match before(index + 1) > second {
                true => Either::Second(self.1.part(second)),
                false => Either::First(self.0.part(index - second)),
            }
        }
    }
}

/// The parts of one thing, the last one first.
pub struct Reversed<S>(pub S);

// SAFETY: an index is given out once, so its counterpart from the other end is.
unsafe impl<S: Split> Split for Reversed<S> {
    type Part = S::Part;

    fn parts(&self) -> usize {
        self.0.parts()
    }

    unsafe fn part(&self, index: usize) -> S::Part {
        // SAFETY: as promised by the caller.
        unsafe { self.0.part(self.0.parts() - 1 - index) }
    }
}

/// Some ranges of a slice; see [`ranges`].
pub struct Ranges<'a, T> {
    first: *mut T,
    ranges: &'a [Range<usize>],
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: all that is done with a shared reference is handing out disjoint pieces, and `T: Send` lets them move.
unsafe impl<T: Send> Sync for Ranges<'_, T> {}

/// Cuts ranges out of a slice.
///
/// # Panics
/// If they do not follow each other within the slice.
pub fn ranges<'a, T>(slice: &'a mut [T], ranges: &'a [Range<usize>]) -> Ranges<'a, T> {
    assert_order(ranges, slice.len());
    Ranges { first: slice.as_mut_ptr(), ranges, _slice: PhantomData }
}

fn assert_order(ranges: &[Range<usize>], len: usize) {
    let mut last = 0;
    for range in ranges {
        assert!(last <= range.start && range.start <= range.end && range.end <= len);
        last = range.end;
    }
}

// SAFETY: `ranges` has seen that they do not overlap.
unsafe impl<'a, T: Send> Split for Ranges<'a, T> {
    type Part = &'a mut [T];

    fn parts(&self) -> usize {
        self.ranges.len()
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        let range = &self.ranges[index];
        // SAFETY: `ranges` has seen that it lies within the slice, which stays borrowed for 'a; nobody else has this part.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

/// Some columns of a row-major matrix, writable while other threads write other columns.
pub struct Stripe<'a, T = f32> {
    first: *mut T,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    _matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a stripe is an exclusive borrow of its columns in its rows: `Stripes` and `Cells` make them disjoint.
unsafe impl<T: Send> Send for Stripe<'_, T> {}

impl<T> Stripe<'_, T> {
    /// Which columns of the matrix these are.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Which rows of the matrix: all, or those of a cell.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// This stripe's part of one row of the matrix.
    ///
    /// # Panics
    /// If it has none of that row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row));
        // SAFETY: whoever made this saw that the matrix, which begins at `first`, has these rows of `width` elements, and that
        // `columns` end at `width` at most, so the range lies within it; no other stripe has these columns of these rows, and
        // `&mut self` excludes a second slice from this one.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.first.add(row * self.width + self.columns.start),
                self.columns.len(),
            )
        }
    }
}

/// A matrix in stripes; see [`stripes`].
pub struct Stripes<'a, T = f32> {
    first: *mut T,
    width: usize,
    rows: usize,
    columns: usize,
    _matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: all that is done with a shared reference is handing out disjoint stripes, and `T: Send` lets them move.
unsafe impl<T: Send> Sync for Stripes<'_, T> {}

/// Cuts a row-major matrix `[rows, width]` into stripes of `columns` columns; the last may be narrower.
///
/// # Panics
/// If `matrix` is not a whole number of rows or `columns` is 0.
pub fn stripes<T>(matrix: &mut [T], width: usize, columns: usize) -> Stripes<'_, T> {
    assert!(width > 0 && columns > 0 && matrix.len().is_multiple_of(width));
    let (first, rows) = (matrix.as_mut_ptr(), matrix.len() / width);
    Stripes { first, width, rows, columns, _matrix: PhantomData }
}

impl<'a, T: Send> Stripes<'a, T> {
    /// One after the other.
    pub fn all(self) -> impl Iterator<Item = Stripe<'a, T>> {
        // SAFETY: every index is in bounds and occurs once.
        (0..self.parts()).map(move |index| unsafe { self.part(index) })
    }
}

// SAFETY: stripes of different numbers have no column in common.
unsafe impl<'a, T: Send> Split for Stripes<'a, T> {
    type Part = Stripe<'a, T>;

    fn parts(&self) -> usize {
        self.width.div_ceil(self.columns)
    }

    unsafe fn part(&self, index: usize) -> Stripe<'a, T> {
        let start = index * self.columns;
        let columns = start..self.width.min(start + self.columns);
        Stripe {
            first: self.first,
            width: self.width,
            rows: 0..self.rows,
            columns,
            _matrix: PhantomData,
        }
    }
}

/// A matrix cut both ways; see [`cells`].
pub struct Cells<'a> {
    stripes: Stripes<'a>,
    rows: &'a [Range<usize>],
}

/// Cuts ranges of rows out of a matrix `[rows, width]`, and each into stripes of `columns` columns: first those of the first range.
///
/// # Panics
/// As [`stripes`], and if the ranges do not follow each other within the matrix.
pub fn cells<'a>(
    matrix: &'a mut [f32],
    width: usize,
    rows: &'a [Range<usize>],
    columns: usize,
) -> Cells<'a> {
    let stripes = stripes(matrix, width, columns);
    assert_order(rows, stripes.rows);
    Cells { stripes, rows }
}

// SAFETY: cells of different numbers have no column or no row in common, as `cells` has seen.
unsafe impl<'a> Split for Cells<'a> {
    type Part = Stripe<'a>;

    fn parts(&self) -> usize {
        self.rows.len() * self.stripes.parts()
    }

    unsafe fn part(&self, index: usize) -> Stripe<'a> {
        let (rows, stripe) = (index / self.stripes.parts(), index % self.stripes.parts());
        let rows = self.rows[rows].clone();
        // SAFETY: the index is in bounds, and of this stripe nothing but these rows is handed out; they lie within the matrix.
        Stripe { rows, ..unsafe { self.stripes.part(stripe) } }
    }
}
