//! The int8 kernel of tiers with `vpdpbusd`.

/// Defines `products` on the operations of a width of vector and `load` in scope.
macro_rules! vnni_int8 {
    ($features:literal, $dpbusd:ident, $xor:ident) => {
        /// Products of `V` strips with `N` halves, in `U` sums each, so that an addition need not wait for the one before it.
        ///
        /// Sums of shifted weights may wrap at 32 bits; taking off what the shift added brings them back.
        #[target_feature(enable = $features)]
        fn products<const V: usize, const N: usize, const U: usize>(
            strips: [Strip<'_>; V],
            tile: &Int8Tile<'_>,
            out: &mut [Sums],
        ) {
            let groups = strips[0].groups.len();
            let x = halves::<N>(tile, groups);
            let shift = splat([i8::MIN; 4]);
            let ahead = Ahead::new(&strips, tile.turn);
            let mut acc = [[[zero(); U]; N]; V];
            for g in 0..groups {
                for j in 0..4 {
                    if N <= 2 {
                        prefetch_next_pages(strips[0].groups.as_flattened(), 4 * g + j);
                    } else if N <= 4 {
                        prefetch_block(strips[0].groups.as_flattened(), 4 * g + j);
                    } else {
                        ahead.fetch::<LANES>(4 * g + j);
                    }
                    let mut w = [zero(); V];
                    for v in 0..V {
                        w[v] = $xor(load(&strips[v].groups[g][j], strips[v].part), shift);
                    }
                    for t in 0..N {
                        let q = splat(x[t][g][j]);
                        for v in 0..V {
                            acc[v][t][j % U] = $dpbusd(acc[v][t][j % U], w[v], q);
                        }
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    let sum = acc[v][t].into_iter().reduce(|a, b| add32(a, b));
                    let added = splat32(tile.sums[t].wrapping_mul(128));
                    let sums = &mut out[strips[v].panel * N + t];
                    let lanes = &mut sums.as_chunks_mut().0[strips[v].part];
                    store(lanes, sub32(sum.expect("U is not 0"), added));
                }
            }
        }
    };
}
