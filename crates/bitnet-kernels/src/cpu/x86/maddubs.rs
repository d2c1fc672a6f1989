//! The kernels of tiers whose widest integer product is `pmaddubsw`, which adds two products of bytes to a 16-bit lane.
//!
//! A code is at most 2 and an activation at most 127 in size, so a lane grows by at most 508 with each product of
//! unshifted codes: 64 of them reach 32512 and fit, 65 could wrap.

/// Defines `one` and `many` on the operations of a width of vector in scope.
macro_rules! maddubs_kernels {
    ($features:literal) => {
        /// Products of one token.
        ///
        /// Two of the four bit fields are taken where they are, worth 4, and the other two after one shift serves both.
        #[target_feature(enable = $features)]
        fn one<const V: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            // Two products worth 4 per block add at most 4 · 2 · 508 = 4064 to a lane: 8 blocks reach 32512.
            const BLOCKS_PER_FLUSH: usize = 8;
            let (low, high) = (splat([0x03; 4]), splat([0x0C; 4]));
            let mut acc = [zero(); V]; // in fourths
            let tokens = &x.blocks(0)[..strips[0].blocks.len()];
            for first in (0..tokens.len()).step_by(BLOCKS_PER_FLUSH) {
                let (mut ones, mut fours) = ([zero(); V], [zero(); V]);
                for b in first..tokens.len().min(first + BLOCKS_PER_FLUSH) {
                    prefetch(strips[0].blocks, b);
                    let q = tokens[b];
                    let (q0, q1, q2, q3) = (splat(q[0]), splat(q[1]), splat(q[2]), splat(q[3]));
                    for v in 0..V {
                        let codes = load(&strips[v].blocks[b], strips[v].part);
                        let upper = shift_down::<4>(codes);
                        ones[v] = add16(ones[v], maddubs(and(codes, low), q0));
                        fours[v] = add16(fours[v], maddubs(and(codes, high), q1));
                        ones[v] = add16(ones[v], maddubs(and(upper, low), q2));
                        fours[v] = add16(fours[v], maddubs(and(upper, high), q3));
                    }
                }
                for v in 0..V {
                    acc[v] = add32(acc[v], madd(ones[v], splat16(4)));
                    acc[v] = add32(acc[v], madd(fours[v], splat16(1)));
                }
            }
            for v in 0..V {
                let codes = divide::<2>(acc[v]);
                store(out.lanes(0, strips[v].row), sub32(codes, splat32(sums[0])));
            }
        }

        /// Products of `N` tokens; the codes are unpacked once for all of them.
        #[target_feature(enable = $features)]
        fn many<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            // Four products per block: 16 blocks make the 64 that fit.
            const BLOCKS_PER_FLUSH: usize = 16;
            let mask = splat([0x03; 4]);
            let blocks = strips[0].blocks.len();
            let mut acc = [[zero(); N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks(t)[..blocks];
            }
            for first in (0..blocks).step_by(BLOCKS_PER_FLUSH) {
                let mut narrow = [[zero(); N]; V];
                for b in first..blocks.min(first + BLOCKS_PER_FLUSH) {
                    let mut codes = [zero(); V];
                    for v in 0..V {
                        codes[v] = load(&strips[v].blocks[b], strips[v].part);
                    }
                    prefetch(strips[0].blocks, b);
                    for j in 0..4 {
                        let mut field = [zero(); V];
                        for v in 0..V {
                            field[v] = and(codes[v], mask);
                            codes[v] = shift_down::<2>(codes[v]);
                        }
                        for t in 0..N {
                            let q = splat(tokens[t][b][j]);
                            for v in 0..V {
                                narrow[v][t] = add16(narrow[v][t], maddubs(field[v], q));
                            }
                        }
                    }
                }
                for v in 0..V {
                    for t in 0..N {
                        acc[v][t] = add32(acc[v][t], madd(narrow[v][t], splat16(1)));
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    store(out.lanes(t, strips[v].row), sub32(acc[v][t], splat32(sums[t])));
                }
            }
        }

        /// Runs nothing but `pmaddubsw` and the addition that must follow; see `Isa::spin`.
        #[target_feature(enable = $features)]
        fn spin(rounds: usize) -> usize {
            let (mut acc, mut products) = ([zero(); 6], [splat([1; 4]); 6]);
            let operand = splat(std::hint::black_box([1, 2, 3, 4]));
            for _ in 0..rounds {
                for i in 0..acc.len() {
                    acc[i] = add16(acc[i], products[i]);
                    products[i] = maddubs(products[i], operand);
                }
            }
            std::hint::black_box(acc);
            rounds * acc.len() * size_of::<V>()
        }
    };
}
