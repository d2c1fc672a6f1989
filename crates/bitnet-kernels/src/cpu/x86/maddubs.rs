//! The kernels of tiers whose widest integer product is `pmaddubsw`, which adds two products of bytes to a 16-bit lane.
//!
//! A code is at most 2 and an activation at most 127 in size, so a lane grows by at most 508 with each product of
//! unshifted codes: 64 of them reach 32512 and fit, 65 could wrap.

/// Defines `many` on the operations of a width of vector and a form of weights in scope.
macro_rules! maddubs_kernels {
    ($features:literal) => {
        /// Products of `N` tokens; the codes are unpacked once for all of them.
        #[target_feature(enable = $features)]
        fn many<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            // Of 64 products that fit: 16 blocks of four or 12 of five.
            const BLOCKS_PER_FLUSH: usize = 64 / QUADS;
            let blocks = strips[0].blocks.len();
            let mut acc = [[zero(); N]; V];
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks::<QUADS>(t)[..blocks];
            }
            for first in (0..blocks).step_by(BLOCKS_PER_FLUSH) {
                let mut narrow = [[zero(); N]; V];
                for b in first..blocks.min(first + BLOCKS_PER_FLUSH) {
                    let mut rest = [open(zero()); V];
                    for v in 0..V {
                        rest[v] = open(load(&strips[v].blocks[b], strips[v].part));
                    }
                    prefetch::<_MM_HINT_T0, LANES, _>(&strips, b);
                    for step in 0..QUADS {
                        let mut codes = [zero(); V];
                        for v in 0..V {
                            codes[v] = next(&mut rest[v], step);
                        }
                        for t in 0..N {
                            let q = splat(tokens[t][b][ORDER[step]]);
                            for v in 0..V {
                                narrow[v][t] = add16(narrow[v][t], maddubs(codes[v], q));
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
    };
}

/// Defines `few` for weights of two bits, on the operations of a width of vector in scope.
macro_rules! maddubs_few_of_two_bits {
    ($features:literal) => {
        /// Products of `N` tokens, for as few that unpacking would cost more than it saves.
        ///
        /// Two of the four bit fields are taken where they are, worth 4, and the other two after one shift serves both.
        #[target_feature(enable = $features)]
        fn few<const V: usize, const N: usize>(
            strips: [Strip<'_>; V],
            x: Tokens<'_>,
            sums: &[i32],
            out: &mut Out<'_>,
        ) {
            // Two products worth 4 per block add at most 4 · 2 · 508 = 4064 to a lane: 8 blocks reach 32512.
            const BLOCKS_PER_FLUSH: usize = 8;
            let (low, high) = (splat([0x03; 4]), splat([0x0C; 4]));
            let mut acc = [[zero(); N]; V]; // in fourths
            let blocks = strips[0].blocks.len();
            let mut tokens = [&[][..]; N];
            for t in 0..N {
                tokens[t] = &x.blocks::<QUADS>(t)[..blocks];
            }
            for first in (0..blocks).step_by(BLOCKS_PER_FLUSH) {
                let mut ones = [[zero(); N]; V];
                let mut fours = ones;
                for b in first..blocks.min(first + BLOCKS_PER_FLUSH) {
                    prefetch::<_MM_HINT_T1, LANES, _>(&strips, b);
                    for v in 0..V {
                        let codes = load(&strips[v].blocks[b], strips[v].part);
                        let upper = shift_down::<4>(codes);
                        for t in 0..N {
                            let [q0, q1, q2, q3] = tokens[t][b];
                            let (ones, fours) = (&mut ones[v][t], &mut fours[v][t]);
                            *ones = add16(*ones, maddubs(and(codes, low), splat(q0)));
                            *fours = add16(*fours, maddubs(and(codes, high), splat(q1)));
                            *ones = add16(*ones, maddubs(and(upper, low), splat(q2)));
                            *fours = add16(*fours, maddubs(and(upper, high), splat(q3)));
                        }
                    }
                }
                for v in 0..V {
                    for t in 0..N {
                        let sum = add32(acc[v][t], madd(ones[v][t], splat16(4)));
                        acc[v][t] = add32(sum, madd(fours[v][t], splat16(1)));
                    }
                }
            }
            for v in 0..V {
                for t in 0..N {
                    let codes = divide::<2>(acc[v][t]);
                    store(out.lanes(t, strips[v].row), sub32(codes, splat32(sums[t])));
                }
            }
        }
    };
}

/// Defines `spin`, which runs nothing but `pmaddubsw` and the addition that must follow; see `Isa::spin`.
macro_rules! maddubs_spin {
    ($features:literal) => {
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

/// Defines both packings' kernels for a tier whose vectors are in scope. `$few` and `$many`: how many strips they take at a
/// time, for one token and for several.
macro_rules! maddubs_tier {
    ($token:ident, $features:literal, panels $panels:literal, strips $few:literal $many:literal) => {
        tile_kernel!($token, panels $panels, tokens 8);
        maddubs_spin!($features);

        mod two_bits {
            use super::*;
            two_bits!($features);
            maddubs_kernels!($features);
            maddubs_few_of_two_bits!($features);
            run_tile!($features, few $few: 1; many $many: 2 3 4 5 6 7 8);
        }

        mod five_trits {
            use super::*;
            five_trits!($features);
            maddubs_kernels!($features);
            run_tile!($features, many $few: 1; many $many: 2 3 4 5 6 7 8);
        }
    };
}
