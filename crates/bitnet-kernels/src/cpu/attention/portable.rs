//! Where there are no loops for tiers: the portable ones, which use the vectors that the whole build may use.

use crate::cpu::isa::Isa;
use crate::kv::{KvPart, KvType};
use crate::scalar::attention::{self as portable, Dots, Form, Quad, Row, TOGETHER, Weights};

pub fn form(_: Isa) -> Form {
    Form::Pairs
}

pub fn vector_bits(_: Isa) -> usize {
    0
}

pub fn reads_stored(_: Isa, _: KvType) -> bool {
    false
}

pub fn score_stored(
    _: Isa,
    dtype: KvType,
    _: &[[f32; TOGETHER]],
    _: &[u8],
    _: &[u8],
    _: usize,
    _: &mut [Row],
) {
    unreachable!("`reads_stored` is false for {dtype}")
}

pub fn weigh_stored(_: Isa, dtype: KvType, _: &[Row], _: usize, _: &[u8], _: &[u8], _: &mut [f32]) {
    unreachable!("`reads_stored` is false for {dtype}")
}

pub fn read_keys(isa: Isa, part: KvPart<'_>, blocks: usize, _: &[u8], out: &mut [f32]) {
    isa.read_keys(part, blocks, out);
}

pub fn read_values(
    isa: Isa,
    part: KvPart<'_>,
    positions: usize,
    stride: usize,
    _: &[u8],
    out: &mut [f32],
) {
    isa.read_values(part, positions, stride, out);
}

pub fn announce(_: &[u8]) {} // processors without loops of their own are left to their own prefetching

pub fn score(_: Isa, q: &[[f32; TOGETHER]], keys: &[f32], column: usize, scores: &mut [Row]) {
    portable::score(q, keys, column, scores);
}

pub fn weigh(
    _: Isa,
    weights: &[Row],
    column: usize,
    values: &[f32],
    stride: usize,
    out: &mut [f32],
) {
    portable::weigh(weights, column, values, stride, out);
}

pub fn score_int8(
    _: Isa,
    q: &[[Quad; TOGETHER]],
    keys: &[u8],
    _: &[u8],
    column: usize,
    dots: &mut [Dots],
) {
    portable::score_int8(q, keys, column, dots);
}

pub fn weigh_int8(
    _: Isa,
    weights: &[Weights],
    pages: &[&[u8]],
    _: &[&[u8]],
    positions: usize,
    out: &mut [i32],
) {
    portable::weigh_int8(weights, pages, positions, out);
}
