//! Float operations: the functions of `scalar`, compiled once for each instruction set and chosen by [`Isa`].
//!
//! They never use a fused multiply-add, so all versions give the same bits; wider registers only make them faster.

use std::ops::Range;

use super::isa::Isa;
use crate::dense::DenseMatrix;
use crate::kv::KvLayer;
use crate::scalar::attention::Context;
use crate::scalar::elementwise::Activation;
use crate::scalar::int8::Split;
#[cfg(not(target_arch = "x86_64"))]
use crate::scalar::{attention, elementwise, head, int8, norm, rope};

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
            /// See [`crate::scalar::attention::attend`].
            fn attend(kv: &KvLayer, head: usize, context: Context<'_>, q: &[f32], scratch: &mut Vec<f32>, out: &mut [f32]) -> () = attention;
            /// See [`crate::scalar::elementwise::scale_product`].
            fn scale_product(acc: &[i32], w: f32, s: f32, y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::scale_product_rows`].
            fn scale_product_rows(acc: &[i32], w: &[f32], s: f32, y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::add`].
            fn add(x: &[f32], y: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::elementwise::gate`].
            fn gate(activation: Activation, up: &[f32], gate: &mut [f32]) -> () = elementwise;
            /// See [`crate::scalar::head::logits`].
            fn logits(head: &DenseMatrix, rows: Range<usize>, x: &[f32], row: &mut Vec<f32>, out: &mut [f32]) -> () = head;
            /// See [`crate::scalar::head::quantize_head_row`].
            fn quantize_head_row(head: &DenseMatrix, row: usize, values: &mut Vec<f32>, q: &mut [i8]) -> Option<f32> = head;
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
