//! The loops of attention, as macros that want the operations on one width of vector in scope.
//!
//! Four queries go through a few vectors of keys or values at a time, so that eight and more sums grow independently and each
//! vector that is loaded is used four times.

/// Keys and values that are floats already.
macro_rules! floats {
    ($features:literal) => {
        type Element = f32;

        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn load_elements(from: *const f32) -> F {
            // SAFETY: as promised by the caller.
            unsafe { load_floats(from) }
        }

        #[inline(always)]
        fn widen(x: f32) -> f32 {
            x
        }
    };
}

/// Keys and values of 16 bits as they are stored, turned into floats on their way to the registers. `$load` reads a vector of them.
macro_rules! stored {
    ($features:literal, $load:ident, $widen:path) => {
        type Element = [u8; 2];

        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn load_elements(from: *const Element) -> F {
            // SAFETY: as promised by the caller.
            unsafe { $load(from.cast()) }
        }

        #[inline(always)]
        fn widen(x: Element) -> f32 {
            $widen(x)
        }
    };
}

/// Defines `score` and `weigh` on `floats` or `stored`. `$wide` is the number of vectors of values that go together, as many as
/// the registers hold. Both ask for the bytes of `ahead` meanwhile, from its beginning to its end.
macro_rules! float_loops {
    ($features:literal, $wide:literal) => {
        #[target_feature(enable = $features)]
        pub(super) fn score(
            q: &[[f32; super::TOGETHER]],
            keys: &[Element],
            ahead: &[u8],
            column: usize,
            scores: &mut [super::Row],
        ) {
            use crate::kv::BLOCK;

            let (scores, _) = scores.as_chunks_mut::<{ super::TOGETHER }>();
            let dim = q.len() / scores.len();
            let positions = keys.len() / dim;
            assert!(positions.is_multiple_of(BLOCK));
            let mut first = 0;
            // The keys of a tile, at most 16 KB, stay in the first-level cache while all queries go by.
            while first + $wide * LANES <= positions {
                for (q, scores) in q.chunks_exact(dim).zip(&mut *scores) {
                    score_tile::<$wide>(q, keys, ahead, first, column, scores);
                }
                first += $wide * LANES;
            }
            while first < positions {
                for (q, scores) in q.chunks_exact(dim).zip(&mut *scores) {
                    score_tile::<1>(q, keys, ahead, first, column, scores);
                }
                first += LANES;
            }
        }

        /// The products with the positions `first..first + N * LANES`.
        #[target_feature(enable = $features)]
        fn score_tile<const N: usize>(
            q: &[[f32; super::TOGETHER]],
            keys: &[Element],
            ahead: &[u8],
            first: usize,
            column: usize,
            scores: &mut [super::Row; super::TOGETHER],
        ) {
            use crate::kv::BLOCK;

            let dim = q.len();
            assert!((first + N * LANES).next_multiple_of(BLOCK) * dim <= keys.len());
            let ahead = ahead.as_ptr().wrapping_add(first * dim * size_of::<Element>());
            let mut sums = [[zero_floats(); N]; super::TOGETHER];
            for i in 0..dim {
                let mut key = [zero_floats(); N];
                super::fetch::<Element>(ahead, i, N * LANES);
                for v in 0..N {
                    let position = first + v * LANES;
                    let at = (position / BLOCK * dim + i) * BLOCK + position % BLOCK;
                    // SAFETY: `LANES` divides `BLOCK`, so these lanes lie in one row of a block, and all rows of the block lie
                    // within `keys`, as the assertion says.
                    key[v] = unsafe { load_elements(keys.as_ptr().add(at)) };
                }
                for n in 0..super::TOGETHER {
                    let x = splat_float(q[i][n]);
                    for v in 0..N {
                        sums[n][v] = add_product(sums[n][v], x, key[v]);
                    }
                }
            }
            for n in 0..super::TOGETHER {
                let scores = &mut scores[n][column + first..][..N * LANES];
                for v in 0..N {
                    // SAFETY: `scores` has `N * LANES` floats.
                    unsafe { store_floats(scores.as_mut_ptr().add(v * LANES), sums[n][v]) }
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn weigh(
            weights: &[super::Row],
            column: usize,
            values: &[Element],
            stride: usize,
            ahead: &[u8],
            out: &mut [f32],
        ) {
            let (weights, _) = weights.as_chunks::<{ super::TOGETHER }>();
            let dim = out.len() / (super::TOGETHER * weights.len());
            let positions = values.len() / stride;
            let tile = super::Values { values, stride, positions, column, ahead };
            let mut first = 0;
            while first + $wide * LANES <= dim {
                for (weights, out) in
                    weights.iter().zip(out.chunks_exact_mut(super::TOGETHER * dim))
                {
                    weigh_tile::<$wide>(weights, tile, first, out);
                }
                first += $wide * LANES;
            }
            for (weights, out) in weights.iter().zip(out.chunks_exact_mut(super::TOGETHER * dim)) {
                let mut first = first;
                while first + LANES <= dim {
                    weigh_tile::<1>(weights, tile, first, out);
                    first += LANES;
                }
                for (weights, out) in weights.iter().zip(out.chunks_exact_mut(dim)) {
                    for (weight, values) in weights[column..].iter().zip(values.chunks(stride)) {
                        for i in first..dim {
                            out[i] += weight * widen(values[i]);
                        }
                    }
                }
            }
        }

        /// The sums of the elements `first..first + N * LANES`.
        #[target_feature(enable = $features)]
        fn weigh_tile<const N: usize>(
            all_weights: &[super::Row; super::TOGETHER],
            super::Values { values, stride, positions, column, ahead }: super::Values<'_, Element>,
            first: usize,
            out: &mut [f32],
        ) {
            let dim = out.len() / super::TOGETHER;
            assert!(
                first + N * LANES <= dim && dim <= stride && positions * stride <= values.len()
            );
            let ahead = ahead.as_ptr().wrapping_add(first * positions * size_of::<Element>());
            let mut weights = [&[][..]; super::TOGETHER];
            for n in 0..super::TOGETHER {
                weights[n] = &all_weights[n][column..][..positions];
            }
            let mut sums = [[zero_floats(); N]; super::TOGETHER];
            for n in 0..super::TOGETHER {
                for v in 0..N {
                    let at = n * dim + first + v * LANES;
                    // SAFETY: these lanes lie in row `n` of `out`.
                    sums[n][v] = unsafe { load_floats(out.as_ptr().add(at)) };
                }
            }
            for j in 0..positions {
                let mut value = [zero_floats(); N];
                super::fetch::<Element>(ahead, j, N * LANES);
                for v in 0..N {
                    let at = j * stride + first + v * LANES;
                    // SAFETY: these lanes lie in row `j` of `values`.
                    value[v] = unsafe { load_elements(values.as_ptr().add(at)) };
                }
                for n in 0..super::TOGETHER {
                    let x = splat_float(weights[n][j]);
                    for v in 0..N {
                        sums[n][v] = add_product(sums[n][v], x, value[v]);
                    }
                }
            }
            for n in 0..super::TOGETHER {
                for v in 0..N {
                    // SAFETY: these lanes lie in row `n` of `out`.
                    unsafe {
                        store_floats(out.as_mut_ptr().add(n * dim + first + v * LANES), sums[n][v]);
                    }
                }
            }
        }
    };
}

/// Products of int8 with 16-bit numbers by widening the bytes: what there is without VNNI.
macro_rules! words {
    ($features:literal) => {
        type Operand = [V; 2];
        type Sum = V;

        #[target_feature(enable = $features)]
        #[inline]
        fn empty() -> Sum {
            zero()
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn key_operand(keys: V) -> Operand {
            unsigned_pairs(keys)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn value_operand(values: V) -> Operand {
            signed_pairs(values)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_key(sum: Sum, key: Operand, q: [V; 2]) -> Sum {
            add32(add32(sum, madd(key[0], q[0])), madd(key[1], q[1]))
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_value(sum: Sum, value: Operand, weight: [V; 2]) -> Sum {
            add_key(sum, value, weight)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn total(sum: Sum) -> V {
            sum
        }
    };
}

/// Products of int8 with 16-bit numbers, byte by byte, with VNNI.
macro_rules! bytes {
    ($features:literal, $dpbusd:ident) => {
        type Operand = V;
        type Sum = [V; 2];

        #[target_feature(enable = $features)]
        #[inline]
        fn empty() -> Sum {
            [zero(); 2]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn key_operand(keys: V) -> Operand {
            keys
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn value_operand(values: V) -> Operand {
            values
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_key(sum: Sum, key: Operand, q: [V; 2]) -> Sum {
            [$dpbusd(sum[0], key, q[0]), $dpbusd(sum[1], key, q[1])]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_value(sum: Sum, value: Operand, weight: [V; 2]) -> Sum {
            [$dpbusd(sum[0], weight[0], value), $dpbusd(sum[1], weight[1], value)]
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn total(sum: Sum) -> V {
            add32(times_256(sum[0]), sum[1])
        }
    };
}

/// Defines `score_int8` and `weigh_int8` on `words` or `bytes`. `$wide` is the number of vectors that go together.
macro_rules! int8_loops {
    ($features:literal, $wide:literal) => {
        #[target_feature(enable = $features)]
        pub(super) fn score_int8(
            q: &[[super::Quad; super::TOGETHER]],
            keys: &[u8],
            ahead: &[u8],
            column: usize,
            dots: &mut [super::Dots],
        ) {
            let (dots, _) = dots.as_chunks_mut::<{ super::TOGETHER }>();
            let quads = q.len() / dots.len();
            let positions = keys.len() / (4 * quads);
            assert!(positions.is_multiple_of(crate::kv::BLOCK));
            let mut first = 0;
            // A few queries wait for memory, which is fastest read in one stream.
            while dots.len() > 1 && first + $wide * LANES <= positions {
                for (q, dots) in q.chunks_exact(quads).zip(&mut *dots) {
                    score_int8_tile::<$wide>(q, keys, ahead, first, column, dots);
                }
                first += $wide * LANES;
            }
            while first < positions {
                for (q, dots) in q.chunks_exact(quads).zip(&mut *dots) {
                    score_int8_tile::<1>(q, keys, ahead, first, column, dots);
                }
                first += LANES;
            }
        }

        /// The products with the positions `first..first + N * LANES`.
        #[target_feature(enable = $features)]
        fn score_int8_tile<const N: usize>(
            q: &[[super::Quad; super::TOGETHER]],
            keys: &[u8],
            ahead: &[u8],
            first: usize,
            column: usize,
            dots: &mut [super::Dots; super::TOGETHER],
        ) {
            use crate::kv::BLOCK;

            let quads = q.len();
            assert!((first + N * LANES).next_multiple_of(BLOCK) * 4 * quads <= keys.len());
            let mut sums = [[empty(); N]; super::TOGETHER];
            for i in 0..quads {
                let mut key = [key_operand(zero()); N];
                for v in 0..N {
                    let position = first + v * LANES;
                    let at = 4 * ((position / BLOCK * quads + i) * BLOCK + position % BLOCK);
                    super::prefetch(ahead.as_ptr().wrapping_add(at));
                    // SAFETY: `LANES` divides `BLOCK`, so these lanes lie in one row of a block, and all rows of the block lie
                    // within `keys`, as the assertion says.
                    key[v] = key_operand(unsafe { load(keys.as_ptr().add(at)) });
                }
                for n in 0..super::TOGETHER {
                    let x = [splat(q[i][n][0]), splat(q[i][n][1])];
                    for v in 0..N {
                        sums[n][v] = add_key(sums[n][v], key[v], x);
                    }
                }
            }
            for n in 0..super::TOGETHER {
                let dots = &mut dots[n][column + first..][..N * LANES];
                for v in 0..N {
                    // SAFETY: `dots` has `N * LANES` numbers.
                    unsafe { store(dots.as_mut_ptr().add(v * LANES), total(sums[n][v])) }
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn weigh_int8(
            weights: &[super::Weights],
            pages: &[&[u8]],
            ahead: &[&[u8]],
            positions: usize,
            out: &mut [i32],
        ) {
            let (weights, _) = weights.as_chunks::<{ super::TOGETHER }>();
            let dim = out.len() / (super::TOGETHER * weights.len());
            assert!(dim.is_multiple_of(crate::kv::BLOCK));
            let tile = super::Int8Values { pages, ahead, positions };
            let mut first = 0;
            while first + $wide * LANES <= dim {
                for (weights, out) in
                    weights.iter().zip(out.chunks_exact_mut(super::TOGETHER * dim))
                {
                    weigh_int8_tile::<$wide>(weights, tile, first, out);
                }
                first += $wide * LANES;
            }
            while first < dim {
                for (weights, out) in
                    weights.iter().zip(out.chunks_exact_mut(super::TOGETHER * dim))
                {
                    weigh_int8_tile::<1>(weights, tile, first, out);
                }
                first += LANES;
            }
        }

        /// The sums of the elements `first..first + N * LANES`.
        #[target_feature(enable = $features)]
        fn weigh_int8_tile<const N: usize>(
            weights: &[super::Weights; super::TOGETHER],
            super::Int8Values { pages, ahead, positions }: super::Int8Values<'_>,
            first: usize,
            out: &mut [i32],
        ) {
            use crate::kv::{BLOCK, PAGE};

            let dim = out.len() / super::TOGETHER;
            assert!(first + N * LANES <= dim && dim.is_multiple_of(BLOCK));
            let mut sums = [[empty(); N]; super::TOGETHER];
            for (index, page) in pages.iter().enumerate() {
                let quads = positions.saturating_sub(index * PAGE).min(PAGE).div_ceil(4);
                assert!(page.len() >= PAGE * dim);
                // However the values are walked through, what comes next is asked for from its beginning to its end.
                let walked = (first / (N * LANES) * pages.len() + index) * PAGE * N * LANES;
                let ahead = ahead[(walked / page.len()).min(ahead.len() - 1)].as_ptr();
                let ahead = ahead.wrapping_add(walked % page.len());
                let mut quad_weights = [[&[][..]; 2]; super::TOGETHER];
                for n in 0..super::TOGETHER {
                    for part in 0..2 {
                        let all = weights[n][part].as_chunks::<4>().0;
                        quad_weights[n][part] = &all[index * PAGE / 4..][..quads];
                    }
                }
                for j in 0..quads {
                    let mut value = [value_operand(zero()); N];
                    for v in 0..N {
                        let element = first + v * LANES;
                        let row = element / BLOCK * (PAGE / 4) + j;
                        let at = 4 * (row * BLOCK + element % BLOCK);
                        super::prefetch(ahead.wrapping_add(4 * (j * N + v) * LANES));
                        // SAFETY: `LANES` divides `BLOCK`, so these lanes lie in row `j` of a block of 16 elements, and a page has
                        // all blocks of `dim` elements, as the assertions say.
                        value[v] = value_operand(unsafe { load(page.as_ptr().add(at)) });
                    }
                    for n in 0..super::TOGETHER {
                        let x = [splat(quad_weights[n][0][j]), splat(quad_weights[n][1][j])];
                        for v in 0..N {
                            sums[n][v] = add_value(sums[n][v], value[v], x);
                        }
                    }
                }
            }
            for n in 0..super::TOGETHER {
                for v in 0..N {
                    // SAFETY: these lanes lie in row `n` of `out`.
                    unsafe {
                        store(out.as_mut_ptr().add(n * dim + first + v * LANES), total(sums[n][v]));
                    }
                }
            }
        }
    };
}
