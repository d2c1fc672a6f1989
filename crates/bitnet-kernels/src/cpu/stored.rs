//! Packed weights as bytes and back; both are little-endian on every machine.

use std::borrow::Cow;

use bytes::Bytes;

use super::bitlinear::CpuTernary;
use super::head::{CpuHead, packed::Int8Head};
use super::packed::{PackedTernary, Packing};
use crate::head::HeadType;
use crate::memory::Lines;
use crate::stored::{Stored, StoredParts};
use crate::ternary::WeightScale;

/// Changes whenever the bytes of some packed matrix do: a test tells.
const VERSION: u32 = 1;

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

pub(super) fn store_head(head: &CpuHead) -> Option<StoredParts<'_>> {
    match head {
        CpuHead::Int8(head) => {
            let (panels, scales) = head.stored();
            let form = HeadType::Int8.to_string();
            Some(StoredParts { form, panels, scales: to_bytes(scales) })
        }
        CpuHead::TwoStage(_) | CpuHead::File(_) => None,
    }
}

pub(super) fn restore_head(rows: usize, cols: usize, stored: &Stored) -> Option<CpuHead> {
    match stored.form.parse().ok()? {
        HeadType::Int8 => {
            let scales = from_bytes(&stored.scales)?;
            Some(CpuHead::Int8(Int8Head::of_panels(rows, cols, lines(&stored.panels)?, scales)?))
        }
        HeadType::TwoStage | HeadType::File => None,
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

    fn int8_head(backend: &CpuBackend) -> CpuHead {
        backend.upload_head(head(), HeadType::Int8, &|_| {}).unwrap()
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
        let head = int8_head(&backend);
        let parts = backend.store_head(&head).expect("an int8 head is the backend's own");
        let again = backend.restore_head(21, 33, &stored(&parts)).expect("the same shape");
        assert_eq!(backend.store_head(&again), Some(parts.clone()));
        assert!(backend.restore_head(48, 33, &stored(&parts)).is_none(), "more rows");
        assert!(backend.restore_head(21, 64, &stored(&parts)).is_none(), "more columns");
    }

    #[test]
    fn a_head_as_in_the_file_is_not_stored() {
        let backend = backend(Packing::TwoBits);
        let head = backend.upload_head(head(), HeadType::File, &|_| {}).unwrap();
        assert_eq!(backend.store_head(&head), None);
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
            assert!(backend.restore_head(21, 320, &bad).is_none(), "{form}");
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
        let head = sum(backend.store_head(&int8_head(&backend)).unwrap().panels);
        let expected = [0x9266_5250_42e1_48f5, 0xb338_d296_54b8_7fc5];
        assert_eq!((VERSION, ternary, head), (1, expected, 0x970a_25c9_4f0a_92b3));
    }
}
