//! Embedding tables and heads are searched for values that are no numbers, which would become logits that are none.
//!
//! A table of half a gigabyte is a large part of a model's file, so the search looks at exponent bits alone, on all threads.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bitnet_kernels::dense::{self, DenseType};

use super::Checkpoint;
use crate::{
    error::LoadError,
    format::{
        Encoding, Tensor,
        names::{self, Role},
    },
    parallel,
};

/// Bytes between two looks at whether to go on, and between two times that pages are given back: little beside a model,
/// and enough that neither costs time.
const CHUNK: usize = 2 << 20;

impl Checkpoint {
    /// Searches the embedding table and the head for values that are not finite, with `threads` threads; not the one named
    /// `except`, in which whoever reads it all looks for them.
    ///
    /// Pages of a mapped file are given back as it goes.
    ///
    /// # Errors
    /// The first such value, by tensor, row and column.
    pub fn check_tables(&self, except: Option<&str>, threads: usize) -> Result<(), LoadError> {
        let wanted = |name: &str, role| role == Role::Table && except != Some(name);
        let tables =
            names::expected(&self.config).filter(|(name, role, _)| wanted(name.as_str(), *role));
        for (name, role, shape) in tables {
            let tensor = self.find(&name, role, &shape)?;
            // Ternary ones are checked as they are decoded.
            if let Encoding::Dense(dtype) = tensor.encoding {
                self.check_table(tensor, dtype, shape[1], threads)?;
            }
        }
        Ok(())
    }

    fn check_table(
        &self,
        tensor: &Tensor,
        dtype: DenseType,
        cols: usize,
        threads: usize,
    ) -> Result<(), LoadError> {
        let row_bytes = dtype.row_bytes(cols).expect("the container gave it whole blocks") as u64;
        let rows = (tensor.range.end - tensor.range.start) / row_bytes;
        let step = (CHUNK as u64 / row_bytes).max(1);
        let (next, bad) = (AtomicUsize::new(0), Mutex::new(None::<u64>));
        let work = || -> Result<(), LoadError> {
            loop {
                let first = (next.fetch_add(1, Ordering::Relaxed) as u64).saturating_mul(step);
                if first >= rows {
                    return Ok(());
                }
                let end = rows.min(first + step);
                let byte = |row: u64| tensor.range.start + row * row_bytes;
                let clean = self.is_finite(tensor, dtype, byte(first)..byte(end))?;
                if !clean {
                    // Chunks before this one are taken already, so the first bad one is found whoever is faster.
                    next.store(rows as usize, Ordering::Relaxed);
                    let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                    *bad = Some(bad.map_or(first, |earlier| earlier.min(first)));
                }
            }
        };
        parallel::share(threads, work)?;
        match bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(first) => self.name_first(tensor, dtype, cols, first..rows),
        }
    }

    fn is_finite(
        &self,
        tensor: &Tensor,
        dtype: DenseType,
        range: Range<u64>,
    ) -> Result<bool, LoadError> {
        let data = self.read_part(tensor, range.clone())?;
        let clean = all_finite(dtype, &data);
        self.sources[tensor.file].release(range);
        Ok(clean)
    }

    /// The error for the first value of these rows that is not finite.
    pub(super) fn name_first(
        &self,
        tensor: &Tensor,
        dtype: DenseType,
        cols: usize,
        rows: Range<u64>,
    ) -> Result<(), LoadError> {
        let row_bytes = dtype.row_bytes(cols).expect("the container gave it whole blocks") as u64;
        let mut values = vec![0.0; cols];
        for row in rows {
            let start = tensor.range.start + row * row_bytes;
            let data = self.read_part(tensor, start..start + row_bytes)?;
            dense::dequantize(dtype, &data, &mut values);
            if let Some(column) = values.iter().position(|value| !value.is_finite()) {
                return Err(LoadError::Malformed {
                    path: self.file_of(tensor).into(),
                    place: format!("row {row}, column {column} of tensor `{}`", tensor.own_name),
                    found: values[column].to_string(),
                    expected: "a finite number".into(),
                });
            }
        }
        Ok(())
    }
}

/// Whether whole blocks of `dtype` stand for finite values only. In quantized blocks that depends on their scales alone:
/// no product of a finite f16 with their integers leaves the range of f32.
fn all_finite(dtype: DenseType, data: &[u8]) -> bool {
    let (_, block) = dtype.block();
    match dtype {
        DenseType::F32 => no_top_exponent32(data),
        DenseType::F16 => no_top_exponent16(data, 0x7c00),
        DenseType::BF16 => no_top_exponent16(data, 0x7f80),
        DenseType::Q8_0 | DenseType::Q5_0 | DenseType::Q4_0 => scales_finite(data, block, &[0]),
        DenseType::Q5K | DenseType::Q4K => scales_finite(data, block, &[0, 2]),
        DenseType::Q6K => scales_finite(data, block, &[208]),
    }
}

/// The exponent of an infinity or NaN has all its bits set, so that adding its lowest bit carries into the sign's place.
/// This way of asking is three instructions for a whole vector, on every machine.
fn no_top_exponent16(data: &[u8], exponent: u16) -> bool {
    let lowest = exponent & exponent.wrapping_neg();
    let carry = |x: &[u8; 2]| (u16::from_le_bytes(*x) & exponent).wrapping_add(lowest);
    data.as_chunks::<2>().0.iter().fold(0, |carries, x| carries | carry(x)) >> 15 == 0
}

fn no_top_exponent32(data: &[u8]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let carry = |x: &[u8; 4]| (u32::from_le_bytes(*x) & EXPONENT).wrapping_add(1 << 23);
    data.as_chunks::<4>().0.iter().fold(0, |carries, x| carries | carry(x)) >> 31 == 0
}

/// Whether the f16 values at these places of every block are finite.
fn scales_finite(data: &[u8], block: usize, places: &[usize]) -> bool {
    let finite =
        |block: &[u8], at: usize| u16::from_le_bytes([block[at], block[at + 1]]) & 0x7c00 != 0x7c00;
    data.chunks_exact(block).all(|block| places.iter().all(|&at| finite(block, at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSE: [DenseType; 9] = [
        DenseType::F32,
        DenseType::F16,
        DenseType::BF16,
        DenseType::Q8_0,
        DenseType::Q6K,
        DenseType::Q5K,
        DenseType::Q4K,
        DenseType::Q5_0,
        DenseType::Q4_0,
    ];

    /// Every pair of bytes in a row of blocks, set to each f16 and bf16 that is at the border of the finite numbers.
    #[test]
    fn the_search_finds_what_decoding_shows() {
        let mut found = 0;
        for dtype in DENSE {
            let (elements, bytes) = dtype.block();
            let blocks = 512 / bytes + 1;
            let clean: Vec<u8> = (0..blocks * bytes).map(|i| (i * 37 % 89) as u8).collect();
            let mut values = vec![0.0; blocks * elements];
            for at in 0..blocks * bytes - 1 {
                for bits in [0x7bff_u16, 0x7c00, 0x7e00, 0xfbff, 0xfc00, 0x7f7f, 0x7f80, 0xff80] {
                    let mut data = clean.clone();
                    data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                    dense::dequantize(dtype, &data, &mut values);
                    let expected = values.iter().all(|value| value.is_finite());
                    assert_eq!(all_finite(dtype, &data), expected, "{dtype:?} {at} {bits:#x}");
                    found += usize::from(!expected);
                }
            }
        }
        assert!(found > 1000, "{found}");
    }
}
