//! Packed weights as bytes and back; both are little-endian on every machine.

use std::borrow::Cow;

use bytes::Bytes;

use super::bitlinear::CpuTernary;
use super::head::{CpuHead, packed::Int8Head, two_stage::TwoStageHead};
use super::packed::{PackedTernary, Packing};
use crate::head::HeadType;
use crate::memory::Lines;
use crate::stored::{Stored, StoredParts};
use crate::ternary::WeightScale;

/// Changes whenever the bytes of some packed matrix do: a test tells.
const VERSION: u32 = 2;

/// See [`Backend::layout`](crate::backend::Backend::layout).
pub(super) fn layout(packing: Packing, head: HeadType) -> String {
    format!("cpu panels {VERSION}, {packing}, head {head}")
}

pub(super) fn store_ternary(w: &CpuTernary) -> StoredParts<'_> {
    let packing = w.packed.packing();
    let (form, scales) = match &w.scale {
        WeightScale::Tensor(scale) => (format!("{packing} tensor"), std::slice::from_ref(scale)),
        WeightScale::Rows(scales) => (format!("{packing} rows"), &scales[..]),
        WeightScale::Groups { size, scales } => (format!("{packing} groups {size}"), &scales[..]),
    };
    StoredParts { form, panels: w.packed.panel_bytes(), scales: to_bytes(scales) }
}

pub(super) fn restore_ternary(rows: usize, cols: usize, stored: &Stored) -> Option<CpuTernary> {
    let (packing, kind) = stored.form.split_once(' ')?;
    let packing: Packing = packing.parse().ok()?;
    let scales = from_bytes(&stored.scales)?;
    let count = scales.len();
    let scale = match kind.split_once(' ') {
        None if kind == "tensor" && count == 1 => WeightScale::Tensor(scales[0]),
        None if kind == "rows" && count == rows => WeightScale::Rows(scales),
        Some(("groups", size)) => {
            let size = size.parse().ok().filter(|&size: &usize| size > 0)?;
            (Some(count) == rows.checked_mul(cols.div_ceil(size))).then_some(())?;
            WeightScale::Groups { size, scales }
        }
        _ => return None,
    };
    packing.suits(&scale).then_some(())?;
    let packed = PackedTernary::of_panels(packing, rows, cols, lines(&stored.panels)?)?;
    Some(CpuTernary { packed, scale })
}

pub(super) fn store_head(head: &CpuHead) -> Vec<StoredParts<'_>> {
    match head {
        CpuHead::Int8(head) => {
            let (panels, scales) = head.stored();
            let form = HeadType::Int8.to_string();
            vec![StoredParts { form, panels, scales: to_bytes(scales) }]
        }
        CpuHead::TwoStage(head) => {
            let [(rows, scales), (screen, factors)] = head.stored();
            let parts = |name, panels, floats: &[f32]| {
                let form = format!("{} {name}", HeadType::TwoStage);
                StoredParts { form, panels, scales: to_bytes(floats) }
            };
            vec![parts("rows", rows, &scales), parts("screen", screen, &factors)]
        }
        CpuHead::File(_) => Vec::new(),
    }
}

pub(super) fn restore_head(rows: usize, cols: usize, stored: &[Stored]) -> Option<CpuHead> {
    let part = |stored: &Stored| Some((lines(&stored.panels)?, from_bytes(&stored.scales)?));
    match stored {
        [int8] if int8.form == "int8" => {
            let (panels, scales) = part(int8)?;
            Some(CpuHead::Int8(Int8Head::of_panels(rows, cols, panels, scales)?))
        }
        [values, screen]
            if values.form == "two-stage rows" && screen.form == "two-stage screen" =>
        {
            let parts = [part(values)?, part(screen)?];
            Some(CpuHead::TwoStage(Box::new(TwoStageHead::of_parts(rows, cols, parts)?)))
        }
        _ => None,
    }
}

fn lines(bytes: &Bytes) -> Option<Lines> {
    Lines::shared(bytes.clone())
}

fn to_bytes(scales: &[f32]) -> Cow<'static, [u8]> {
    Cow::Owned(scales.iter().flat_map(|scale| scale.to_le_bytes()).collect())
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<f32>> {
    let (scales, rest) = bytes.as_chunks();
    rest.is_empty().then(|| scales.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::cpu::CpuBackend;
    use crate::cpu::isa::Isa;
    use crate::cpu::packing::PackingChoice;
    use crate::dense::{DenseMatrix, DenseType};
    use crate::ternary::TernaryMatrix;

    fn backend(packing: Packing) -> CpuBackend {
        CpuBackend::new(Isa::Scalar, 1).unwrap().with_packing(PackingChoice::Fixed(packing))
    }

    /// As a file would give them back.
    fn stored(parts: &StoredParts<'_>) -> Stored {
        let mut panels = Lines::zeroed(parts.panels.len() / 64);
        panels.bytes_mut().copy_from_slice(parts.panels);
        Stored {
            form: parts.form.clone(),
            panels: Bytes::from_owner(panels),
            scales: parts.scales.to_vec().into(),
        }
    }

    fn matrix(scale: WeightScale) -> TernaryMatrix {
        let values: Vec<i8> = (0..21 * 320).map(|i| (i * i % 7 % 3) as i8 - 1).collect();
        TernaryMatrix::from_values(21, 320, &values, scale)
    }

    fn head() -> DenseMatrix {
        let values = (0..21 * 33).flat_map(|i| ((i * 37 % 101) as f32 - 50.0).to_le_bytes());
        DenseMatrix::new(21, 33, DenseType::F32, values.collect::<Vec<_>>().into()).unwrap()
    }

    fn cpu_head(backend: &CpuBackend, form: HeadType) -> CpuHead {
        backend.upload_head(head(), form, &|_| {}).unwrap()
    }

    fn stored_head(parts: &[StoredParts<'_>]) -> Vec<Stored> {
        parts.iter().map(stored).collect()
    }

    #[test]
    fn ternary_weights_come_back_as_they_were() {
        let scales = |count: usize| (0..count).map(|i| 0.5 + i as f32).collect();
        let groups = WeightScale::Groups { size: 160, scales: scales(21 * 2) };
        for packing in Packing::ALL {
            let backend = backend(packing);
            for scale in [WeightScale::Tensor(0.3), WeightScale::Rows(scales(21)), groups.clone()] {
                let packed = backend.upload_ternary(matrix(scale));
                let stored = stored(&backend.store_ternary(&packed));
                let again = backend.restore_ternary(21, 320, &stored).expect("the same shape");
                assert_eq!((&again.packed, &again.scale), (&packed.packed, &packed.scale));
                assert!(backend.restore_ternary(48, 320, &stored).is_none(), "more rows");
                assert!(backend.restore_ternary(21, 640, &stored).is_none(), "more columns");
            }
        }
    }

    #[test]
    fn a_head_comes_back_as_it_was() {
        let backend = backend(Packing::TwoBits);
        for (form, count) in [(HeadType::Int8, 1), (HeadType::TwoStage, 2)] {
            let head = cpu_head(&backend, form);
            let parts = backend.store_head(&head);
            assert_eq!(parts.len(), count);
            let stored = stored_head(&parts);
            let again = backend.restore_head(21, 33, &stored).expect("the same shape");
            assert_eq!(backend.store_head(&again), parts);
            assert!(backend.restore_head(48, 33, &stored).is_none(), "more rows");
            assert!(backend.restore_head(21, 128, &stored).is_none(), "more columns");
            assert!(backend.restore_head(0, 33, &stored).is_none(), "no rows");
            assert!(backend.restore_head(21, 0, &stored).is_none(), "no columns");
            assert!(backend.restore_head(21, 33, &stored[1..]).is_none(), "a part less");
        }
    }

    /// Takes a two-stage head whose bounds were changed, if it is taken.
    fn with_factors(change: impl Fn(&mut Vec<f32>)) -> Option<CpuHead> {
        let backend = backend(Packing::TwoBits);
        let head = cpu_head(&backend, HeadType::TwoStage);
        let mut stored = stored_head(&backend.store_head(&head));
        let mut factors = from_bytes(&stored[1].scales).unwrap();
        change(&mut factors);
        stored[1].scales = to_bytes(&factors).into_owned().into();
        backend.restore_head(21, 33, &stored)
    }

    /// Estimates and margins of 32 rows each, then the greatest length of a row.
    #[test]
    fn bounds_that_no_head_has_are_refused() {
        assert!(with_factors(|_| {}).is_some());
        for bad in [f32::NAN, f32::INFINITY, -1.0, 1e9] {
            for place in [0, 31, 32, 63] {
                assert!(with_factors(|factors| factors[place] = bad).is_none(), "{bad} at {place}");
            }
        }
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            assert!(with_factors(|factors| factors[64] = bad).is_none(), "length {bad}");
        }
        assert!(with_factors(|factors| factors.truncate(64)).is_none());
    }

    #[test]
    fn a_head_as_in_the_file_is_not_stored() {
        let backend = backend(Packing::TwoBits);
        let head = backend.upload_head(head(), HeadType::File, &|_| {}).unwrap();
        assert_eq!(backend.store_head(&head), []);
    }

    #[test]
    fn other_forms_and_lengths_are_refused() {
        let backend = backend(Packing::TwoBits);
        let packed = backend.upload_ternary(matrix(WeightScale::Rows(vec![1.0; 21])));
        let good = stored(&backend.store_ternary(&packed));
        for form in
            ["", "2bit", "3bit rows", "2bit tensor", "2bit groups 0", "2bit groups x", "int8"]
        {
            let bad = Stored { form: form.into(), ..good.clone() };
            assert!(backend.restore_ternary(21, 320, &bad).is_none(), "{form}");
            assert!(backend.restore_head(21, 320, &[bad]).is_none(), "{form}");
        }
        let short = |bytes: &Bytes, by| bytes.slice(..bytes.len() - by);
        let bad = Stored { scales: short(&good.scales, 4), ..good.clone() };
        assert!(backend.restore_ternary(21, 320, &bad).is_none());
        let bad = Stored { panels: short(&good.panels, 64), ..good.clone() };
        assert!(backend.restore_ternary(21, 320, &bad).is_none());
        assert!(backend.restore_ternary(21, 320, &good).is_some());
    }

    /// Files that were stored by an earlier program are read again, so where these change, `VERSION` must too.
    #[test]
    fn the_bytes_of_a_layout_do_not_change() {
        let sum = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &byte| {
                (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
        };
        let ternary = Packing::ALL.map(|packing| {
            let backend = backend(packing);
            sum(backend
                .store_ternary(&backend.upload_ternary(matrix(WeightScale::Tensor(1.0))))
                .panels)
        });
        let backend = backend(Packing::TwoBits);
        let heads = [HeadType::Int8, HeadType::TwoStage].map(|form| {
            let head = cpu_head(&backend, form);
            backend.store_head(&head).iter().map(|part| sum(part.panels)).collect::<Vec<_>>()
        });
        let expected = [0x9266_5250_42e1_48f5, 0xb338_d296_54b8_7fc5];
        let expected_heads =
            [vec![0x970a_25c9_4f0a_92b3], vec![0xfb120d7d4d426d7, 0x467aa8bdb6e69b73]];
        assert_eq!((VERSION, ternary, heads), (2, expected, expected_heads));
    }
}
