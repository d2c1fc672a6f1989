//! The kernels of tiers with `vpdpbusd`, which adds four products of unsigned and signed bytes to a 32-bit lane.

/// Defines `few` and `many` on the operations of a width of vector and a function `dpbusd` in scope.
macro_rules! vnni_kernels {
    ($features:literal) => {
        /// Products of `N` tokens, for as few that unpacking would cost more than it saves.
        ///
        /// Bit fields are masked and not shifted, and each has its accumulators, worth 1, 4, 16 and 64: every sum is a
        /// multiple of its worth and at most 128 · 127 · K/4, for which `MAX_COLS` leaves room, so dividing at the end is
        /// exact. Several accumulators per product also hide the latency of `vpdpbusd`.
        #[target_feature(enable = $features)]
        fn few<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            let masks = [splat([0x03; 4]), splat([0x0C; 4]), splat([0x30; 4]), splat([-0x40; 4])];
            let mut acc = [[[zero(); 4]; N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks(t)[..strips[0].blocks.len()];
            }
            for b in 0..strips[0].blocks.len() {
                for v in 0..V {
                    prefetch(strips[v].blocks, b);
                    let codes = load(&strips[v].blocks[b], strips[v].part);
                    for j in 0..4 {
                        let field = and(codes, masks[j]);
                        for t in 0..N {
                            acc[v][t][j] = dpbusd(acc[v][t][j], field, splat(tokens[t][b][j]));
                        }
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    let [ones, fours, sixteens, sixty_fours] = acc[v][t];
                    let low = add32(ones, divide::<2>(fours));
                    let high = add32(divide::<4>(sixteens), divide::<6>(sixty_fours));
                    let codes = add32(low, high);
                    store(out.lanes(t, strips[v].row), sub32(codes, splat32(sums[t])));
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
            let mask = splat([0x03; 4]);
            let mut acc = [[zero(); N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks(t)[..strips[0].blocks.len()];
            }
            for b in 0..strips[0].blocks.len() {
                // With more tokens, computing takes so long that the hardware keeps up, and a branch costs registers.
                if N <= 5 {
                    prefetch(strips[0].blocks, b);
                }
                let mut codes = [zero(); V];
                for v in 0..V {
                    codes[v] = load(&strips[v].blocks[b], strips[v].part);
                }
                for j in 0..4 {
                    let mut field = [zero(); V];
                    for v in 0..V {
                        field[v] = and(codes[v], mask);
                        codes[v] = shift_down::<2>(codes[v]);
                    }
                    for t in 0..N {
                        let q = splat(tokens[t][b][j]);
                        for v in 0..V {
                            acc[v][t] = dpbusd(acc[v][t], field[v], q);
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

        /// Runs nothing but `vpdpbusd`, sixteen independent ones a round; see `Isa::spin`.
        #[target_feature(enable = $features)]
        pub(super) fn spin(rounds: usize) -> usize {
            let mut acc = [zero(); 16];
            let operand = splat(std::hint::black_box([1, 2, 3, 4]));
            for _ in 0..rounds {
                for i in 0..acc.len() {
                    acc[i] = dpbusd(acc[i], operand, operand);
                }
            }
            std::hint::black_box(acc);
            rounds * acc.len() * size_of::<V>()
        }
    };
}
