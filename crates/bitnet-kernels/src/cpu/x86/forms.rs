//! How a vector of packed weights turns into vectors of codes, for either packing.
//!
//! Each macro defines the same names on the operations of a width of vector in scope. `QUADS`: the groups of four columns
//! that a vector holds. `in_place`: all digits of a vector at once, each times a worth of its own, and `total`: the sum of
//! their sums, each divided by its worth. `Rest`, `open`, `next` and `ORDER`: the same digits one by one, worth 1 each, so
//! that few registers are taken at a time; step `i` gives the codes of group `ORDER[i]`.

/// Two bits a weight: bit fields, masked where they are or shifted down.
macro_rules! two_bits {
    ($features:literal) => {
        const QUADS: usize = 4;
        const ORDER: [usize; QUADS] = [0, 1, 2, 3];
        type Rest = V;

        /// Worth 1, 4, 16 and 64.
        #[target_feature(enable = $features)]
        #[inline]
        #[allow(dead_code, reason = "some tiers mask in place and some do not")]
        fn in_place(codes: V) -> [V; QUADS] {
            let [ones, fours] = [splat([0x03; 4]), splat([0x0C; 4])];
            let [sixteens, sixty_fours] = [splat([0x30; 4]), splat([-0x40; 4])];
            [and(codes, ones), and(codes, fours), and(codes, sixteens), and(codes, sixty_fours)]
        }

        #[target_feature(enable = $features)]
        #[inline]
        #[allow(dead_code, reason = "as above")]
        fn total([ones, fours, sixteens, sixty_fours]: [V; QUADS]) -> V {
            let low = add32(ones, divide::<2>(fours));
            add32(low, add32(divide::<4>(sixteens), divide::<6>(sixty_fours)))
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn open(codes: V) -> Rest {
            codes
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn next(rest: &mut Rest, _step: usize) -> V {
            let field = and(*rest, splat([0x03; 4]));
            *rest = shift_down::<2>(*rest);
            field
        }
    };
}

/// Five trits a byte, `x = t0 + 3·t1 + 9·t2 + 27·t3 + 84·t4`, where tables have sixteen entries: the remainder of division
/// by 84 is divided by 9, which gives `t2 + 3·t3` and `t0 + 3·t1`, and such pairs, 8 at most, are looked up.
macro_rules! five_trits {
    ($features:literal) => {
        const QUADS: usize = 5;
        const ORDER: [usize; QUADS] = [4, 3, 2, 1, 0];
        /// First `x`, then `t2 + 3·t3` and `t0 + 3·t1`.
        type Rest = [V; 2];

        /// All worth 1.
        #[target_feature(enable = $features)]
        #[inline]
        #[allow(dead_code, reason = "tiers with 16-bit sums unpack step by step")]
        fn in_place(x: V) -> [V; QUADS] {
            let (mut rest, mut codes) = (open(x), [zero(); QUADS]);
            for step in 0..QUADS {
                codes[ORDER[step]] = next(&mut rest, step);
            }
            codes
        }

        #[target_feature(enable = $features)]
        #[inline]
        #[allow(dead_code, reason = "as above")]
        fn total([a, b, c, d, e]: [V; QUADS]) -> V {
            add32(add32(add32(a, b), add32(c, d)), e)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn open(x: V) -> Rest {
            [x; 2]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn next(rest: &mut Rest, step: usize) -> V {
            let threes = table(&[0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0]);
            let ones = table(&[0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0]);
            match step {
                0 => {
                    // A difference below 0 wraps to more than its minuend, so the lesser is the remainder.
                    let x = rest[0];
                    let below_168 = min8(x, sub8(x, splat([168_u8 as i8; 4])));
                    let below_84 = min8(below_168, sub8(below_168, splat([84; 4])));
                    // 7282 / 65536 is more than 1/9 by so little that the quotients of bytes are right, also of an upper
                    // byte with a lower one beneath it. Tests decode all values in all places.
                    let ninth = splat16(7282);
                    let lower = high_product16(and(below_84, splat([-1, 0, -1, 0])), ninth);
                    let upper = and(high_product16(below_84, ninth), splat([0, -1, 0, -1]));
                    let quotient = or(lower, upper);
                    let eightfold = shift_up::<3>(quotient); // 64 at most, so no bits change bytes
                    *rest = [quotient, sub8(sub8(below_84, quotient), eightfold)];
                    // 84 = 64 + 20, 168 = 128 + 40
                    and(shift_down::<6>(sub8(x, below_84)), splat([0x03; 4]))
                }
                1 => look_up(threes, rest[0]),
                2 => look_up(ones, rest[0]),
                3 => look_up(threes, rest[1]),
                _ => look_up(ones, rest[1]),
            }
        }
    };
}

/// Five trits a byte, where tables may have 64 and 128 entries (VBMI): 84 times the highest digit is looked up by the upper
/// six bits, and what is left gives four bit fields, worth 1, 4, 16 and 64.
macro_rules! five_trits_in_fields {
    ($features:literal) => {
        const QUADS: usize = 5;
        const ORDER: [usize; QUADS] = [4, 0, 1, 2, 3];
        type Rest = V;

        /// 84 times the highest digit, by a quarter of the byte.
        const TOPS: [u8; 64] = {
            let mut tops = [0; 64];
            let mut quarter = 0;
            while quarter < 63 {
                tops[quarter] = 84 * (quarter / 21) as u8;
                quarter += 1;
            }
            tops
        };

        /// Bit fields of the four digits of every number below 81.
        const FIELDS: [u8; 128] = {
            let mut fields = [0; 128];
            let mut x = 0;
            while x < 81 {
                fields[x] = (x % 3 + x / 3 % 3 * 4 + x / 9 % 3 * 16 + x / 27 * 64) as u8;
                x += 1;
            }
            fields
        };

        /// Fields, and 84 times the highest digit.
        #[target_feature(enable = $features)]
        #[inline]
        fn split(x: V) -> [V; 2] {
            let top = look_up64(table64(&TOPS), shift_down::<2>(x));
            [look_up128(table128(&FIELDS), sub8(x, top)), top]
        }

        /// Worth 1, 4, 16, 64 and 84.
        #[target_feature(enable = $features)]
        #[inline]
        fn in_place(x: V) -> [V; QUADS] {
            let [fields, top] = split(x);
            let [ones, fours] = [splat([0x03; 4]), splat([0x0C; 4])];
            let [sixteens, sixty_fours] = [splat([0x30; 4]), splat([-0x40; 4])];
            let low = [and(fields, ones), and(fields, fours)];
            [low[0], low[1], and(fields, sixteens), and(fields, sixty_fours), top]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn total([ones, fours, sixteens, sixty_fours, tops]: [V; QUADS]) -> V {
            // A multiple of an odd number is divided by it, exactly, by multiplying with its inverse. 84 is 4 · 21.
            const INVERSE: i32 = {
                let mut inverse = 21_i32; // right in 3 bits, and each turn doubles how many
                let mut turn = 0;
                while turn < 4 {
                    inverse = inverse.wrapping_mul(2_i32.wrapping_sub(inverse.wrapping_mul(21)));
                    turn += 1;
                }
                assert!(inverse.wrapping_mul(21) == 1);
                inverse
            };
            let low = add32(ones, divide::<2>(fours));
            let high = add32(divide::<4>(sixteens), divide::<6>(sixty_fours));
            add32(add32(low, high), divide::<2>(low_product32(tops, splat32(INVERSE))))
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn open(x: V) -> Rest {
            x
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn next(rest: &mut Rest, step: usize) -> V {
            let mask = splat([0x03; 4]);
            if step == 0 {
                let [fields, top] = split(*rest);
                *rest = fields;
                return and(shift_down::<6>(top), mask); // 84 = 64 + 20, 168 = 128 + 40
            }
            let field = and(*rest, mask);
            *rest = shift_down::<2>(*rest);
            field
        }
    };
}
