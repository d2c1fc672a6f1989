//! Float operations: the functions of `scalar`, compiled once for each instruction set and chosen by [`Isa`].
//!
//! They never use a fused multiply-add, so all versions give the same bits; wider registers only make them faster.

use std::ops::Range;

use super::isa::Isa;
use super::packed::Block;
use crate::dense::DenseMatrix;
use crate::kv::{KvPart, KvPartMut};
use crate::scalar::attention::{Dots, Form, Partials, Quad, Row, TOGETHER, Weights};
use crate::scalar::elementwise::Activation;
use crate::scalar::int8::Split;
use crate::scalar::screen::{PanelBounds, Rotation, TokenBounds, Turning};
#[cfg(not(target_arch = "x86_64"))]
use crate::scalar::{attention, elementwise, head, int8, kv, norm, rope, screen};

/// Hands the list of operations to the macro `$with`, which makes a version of each.
macro_rules! float_operations {
    ($with:ident) => {
        $with! {
            /// See [`crate::scalar::norm::rms_norm`].
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) -> () = norm;
            /// See [`crate::scalar::norm::quantize`].
            fn quantize(x: &[f32], q: &mut [i8]) -> (f32, i32) = norm;
            /// See [`crate::scalar::rope::rotate`].
            fn rotate(cos: &[f32], sin: &[f32], x: &mut [f32]) -> () = rope;
            /// See [`crate::scalar::kv::store_kv`].
            fn store_kv(part: &mut KvPartMut<'_>, slot: usize, k: &[f32], v: &[f32]) -> () = kv;
            /// See [`crate::scalar::kv::read_keys`].
            fn read_keys(part: KvPart<'_>, blocks: usize, out: &mut [f32]) -> () = kv;
            /// See [`crate::scalar::kv::read_values`].
            fn read_values(part: KvPart<'_>, positions: usize, stride: usize, out: &mut [f32]) -> () = kv;
            /// See [`crate::scalar::attention::pack_queries`].
            fn pack_queries(q: &[f32], dim: usize, out: &mut [[f32; TOGETHER]]) -> () = attention;
            /// See [`crate::scalar::attention::quantize_query`].
            fn quantize_query(q: &[f32], form: Form, place: usize, out: &mut [[Quad; TOGETHER]]) -> (f32, i32) = attention;
            /// See [`crate::scalar::attention::softmax`].
            fn softmax(row: &mut [f32], seen: usize) -> (f32, f32) = attention;
            /// See [`crate::scalar::attention::scale_dots`].
            fn scale_dots(dots: &Dots, query: (f32, i32), scales: &Row, row: &mut [f32]) -> () = attention;
            /// See [`crate::scalar::attention::quantize_weights`].
            fn quantize_weights(row: &mut [f32], scales: &Row, form: Form, out: &mut Weights) -> f32 = attention;
            /// See [`crate::scalar::attention::scale_sums`].
            fn scale_sums(sums: &[i32], scale: f32, y: &mut [f32]) -> () = attention;
            /// See [`crate::scalar::attention::fold`].
            fn fold(into: &mut Partials, next: &Partials) -> () = attention;
            /// See [`crate::scalar::attention::finish`].
            fn finish(partials: &Partials, query: usize, out: &mut [f32]) -> () = attention;
            /// See [`crate::scalar::elementwise::scale_product`].
            fn scale_product(acc: &[i32], w: f32, s: f32, y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::scale_product_rows`].
            fn scale_product_rows(acc: &[i32], w: &[f32], s: f32, y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::add`].
            fn add(x: &[f32], y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::multiply`].
            fn multiply(y: &mut [f32], x: &[f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::gate`].
            fn gate(activation: Activation, up: &[f32], gate: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::head::quantize_head_row`].
            fn quantize_head_row(head: &DenseMatrix, row: usize, values: &mut Vec<f32>, q: &mut [i8]) -> Option<f32> = head;
            /// See [`crate::scalar::head::peak`].
            fn peak(logits: &[f32]) -> f32 = head;
            /// See [`crate::scalar::screen::screen_panel`].
            fn screen_panel(rotation: &Rotation, rows: &[i8], stride: usize, turning: &mut Turning, blocks: &mut [Block]) -> PanelBounds = screen;
            /// See [`crate::scalar::screen::screen_token`].
            fn screen_token(rotation: &Rotation, halves: [&[i8]; 2], x_scale: f32, turning: &mut Turning, out: &mut [i8]) -> TokenBounds = screen;
            /// See [`crate::scalar::screen::upper_bounds`].
            fn upper_bounds(sums: &[i32], rows: [&[f32]; 2], token: &TokenBounds, bounds: &mut [f32], greatest: &mut [f32]) -> () = screen;
            /// See [`crate::scalar::int8::split`].
            fn split(x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split = int8;
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use float_operations;

/// Methods of [`Isa`] that choose a version.
macro_rules! dispatch {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $module:ident;)*) => {
        impl Isa {
            $($(#[$doc])*
            pub fn $name(self, $($arg: $type),*) -> $result {
                #[cfg(target_arch = "x86_64")]
                {
                    super::x86::floats::$name(self, $($arg),*)
                }
                #[cfg(not(target_arch = "x86_64"))]
                {
                    $module::$name($($arg),*) // NEON is part of every aarch64 target, so the plain version uses it
                }
            })*
        }
    };
}

float_operations!(dispatch);

impl Isa {
    /// See [`crate::scalar::head::logits`].
    pub fn logits(
        self,
        head: &DenseMatrix,
        rows: Range<usize>,
        x: &[f32],
        row: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        #[cfg(target_arch = "x86_64")]
        {
            super::x86::head::logits(self, head, rows, x, row, out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            crate::scalar::head::logits(crate::scalar::ternary::Portable, head, rows, x, row, out);
        }
    }
}
