//! The float operations compiled for SSE4.1, AVX, AVX2 and AVX-512.

use crate::cpu::floats::float_operations;
use crate::cpu::isa::Isa;
use crate::cpu::packed::Block;
use crate::dense::DenseMatrix;
use crate::kv::{KvPart, KvPartMut};
use crate::scalar::attention::{self, Dots, Form, Partials, Quad, Row, TOGETHER, Weights};
use crate::scalar::elementwise::{self, Activation};
use crate::scalar::int8::{self, Split};
use crate::scalar::screen::{self, PanelBounds, Rotation, TokenBounds, Turning};
use crate::scalar::{head, kv, norm, rope};

macro_rules! versions {
    ($version:ident, $features:literal, $($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $module:ident;)*) => {
        mod $version {
            use super::*;
            $(#[target_feature(enable = $features)]
            pub fn $name($($arg: $type),*) -> $result {
                $module::$name($($arg),*)
            })*
        }
    };
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $module:ident;)*) => {
        versions!(sse41, "sse4.1", $(fn $name($($arg: $type),*) -> $result = $module;)*);
        versions!(avx, "avx", $(fn $name($($arg: $type),*) -> $result = $module;)*);
        versions!(avx2, "avx2", $(fn $name($($arg: $type),*) -> $result = $module;)*);
        versions!(avx512, "avx512f,avx512bw,avx512vl", $(fn $name($($arg: $type),*) -> $result = $module;)*);
        $(pub fn $name(isa: Isa, $($arg: $type),*) -> $result {
            match isa {
                Isa::Scalar => $module::$name($($arg),*),
                // SAFETY: this variant exists only where detection found SSE4.1.
                Isa::Sse41(_) => unsafe { sse41::$name($($arg),*) },
                // SAFETY: this variant exists only where detection found AVX.
                Isa::Avx(_) => unsafe { avx::$name($($arg),*) },
                // SAFETY: these variants exist only where detection found AVX2.
                Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe { avx2::$name($($arg),*) },
                // SAFETY: these variants exist only where detection found AVX-512 F, BW and VL.
                Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe { avx512::$name($($arg),*) },
            }
        })*
    };
}

float_operations!(dispatch);
