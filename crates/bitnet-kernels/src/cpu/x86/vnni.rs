//! The kernels of tiers with `vpdpbusd`, which adds four products of unsigned and signed bytes to a 32-bit lane.

/// Defines `few` and `many` on the operations of a width of vector and a form of weights in scope.
macro_rules! vnni_kernels {
    ($features:literal, $dpbusd:path) => {
        /// Products of `N` tokens, for as few that unpacking would cost more than it saves.
        ///
        /// Digits are not shifted down, and each has its accumulators, worth as much: every sum is a multiple of its worth
        /// and at most 128 · 127 · K/4, or 168 · 127 · K/5, for which `MAX_COLS` leaves room, so dividing at the end is
        /// exact. Several accumulators per product also hide the latency of `vpdpbusd`.
        #[target_feature(enable = $features)]
        fn few<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            let mut acc = [[[zero(); QUADS]; N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks::<QUADS>(t)[..strips[0].blocks.len()];
            }
            for b in 0..strips[0].blocks.len() {
                prefetch::<_MM_HINT_T1, LANES, _>(&strips, b);
                for v in 0..V {
                    let digits = in_place(load(&strips[v].blocks[b], strips[v].part));
                    for j in 0..QUADS {
                        for t in 0..N {
                            acc[v][t][j] = $dpbusd(acc[v][t][j], digits[j], splat(tokens[t][b][j]));
                        }
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    store(out.lanes(t, strips[v].row), sub32(total(acc[v][t]), splat32(sums[t])));
                }
            }
        }

        /// Products of `N` tokens, one accumulator each; the codes are unpacked once for all tokens.
        #[target_feature(enable = $features)]
        fn many<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            let mut acc = [[zero(); N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks::<QUADS>(t)[..strips[0].blocks.len()];
            }
            for b in 0..strips[0].blocks.len() {
                prefetch::<_MM_HINT_T0, LANES, _>(&strips, b);
                let mut rest = [open(zero()); V];
                for v in 0..V {
                    rest[v] = open(load(&strips[v].blocks[b], strips[v].part));
                }
                for step in 0..QUADS {
                    let mut codes = [zero(); V];
                    for v in 0..V {
                        codes[v] = next(&mut rest[v], step);
                    }
                    for t in 0..N {
                        let q = splat(tokens[t][b][ORDER[step]]);
                        for v in 0..V {
                            acc[v][t] = $dpbusd(acc[v][t], codes[v], q);
                        }
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    store(out.lanes(t, strips[v].row), sub32(acc[v][t], splat32(sums[t])));
                }
            }
        }
    };
}

/// Defines `spin`, which runs nothing but `vpdpbusd`, sixteen independent ones a round; see `Isa::spin`.
macro_rules! vnni_spin {
    ($features:literal, $dpbusd:path) => {
        #[target_feature(enable = $features)]
        fn spin(rounds: usize) -> usize {
            let mut acc = [zero(); 16];
            let operand = splat(std::hint::black_box([1, 2, 3, 4]));
            for _ in 0..rounds {
                for i in 0..acc.len() {
                    acc[i] = $dpbusd(acc[i], operand, operand);
                }
            }
            std::hint::black_box(acc);
            rounds * acc.len() * size_of::<V>()
        }
    };
}
