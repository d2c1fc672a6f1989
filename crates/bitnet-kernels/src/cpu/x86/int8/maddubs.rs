//! The int8 kernel of tiers whose widest integer product is `pmaddubsw`.

/// Defines the load of a part of a block.
macro_rules! load {
    ($features:literal, $loadu:ident, $pointee:ty) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn load(block: &[u8; 64], part: usize) -> V {
            const BYTES: usize = 4 * LANES;
            let part = &block.as_chunks::<BYTES>().0[part];
            // SAFETY: `part` is as many readable bytes as a vector has, and `loadu` needs no alignment.
            unsafe { $loadu(part.as_ptr().cast::<$pointee>()) }
        }
    };
}

/// Defines `abs` and `sign`, which gives activations the sign of weights.
macro_rules! sign {
    ($features:literal, $abs:ident, $sign:ident) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn abs(w: V) -> V {
            $abs(w)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn sign(q: V, w: V) -> V {
            $sign(q, w)
        }
    };
}

/// Defines `products` on the operations of a width of vector, `load`, `abs` and `sign` in scope.
macro_rules! maddubs_int8 {
    ($features:literal, $maddubs:ident) => {
        /// Products of `V` strips with `N` halves. Two products of bytes reach 32258, which 16 bits hold; a third would not fit.
        #[target_feature(enable = $features)]
        fn products<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            tile: &Int8Tile<'_>,
            out: &mut [Sums],
        ) {
            let groups = strips[0].groups.len();
            let x = halves::<N>(tile, groups);
            let ones = splat16(1);
            let mut acc = [[zero(); N]; V];
            for g in 0..groups {
                for j in 0..4 {
                    if N <= 4 {
                        prefetch_page(strips[0].groups.as_flattened(), 4 * g + j);
                    }
                    let mut q = [zero(); N];
                    for t in 0..N {
                        q[t] = splat(x[t][g][j]);
                    }
                    for v in 0..V {
                        let w = load(&strips[v].groups[g][j], strips[v].part);
                        let size = abs(w);
                        for t in 0..N {
                            let pairs = $maddubs(size, sign(q[t], w));
                            acc[v][t] = add32(acc[v][t], madd(pairs, ones));
                        }
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    let sums = &mut out[strips[v].panel * N + t];
                    store(&mut sums.as_chunks_mut().0[strips[v].part], acc[v][t]);
                }
            }
        }
    };
}
