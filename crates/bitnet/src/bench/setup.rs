//! The cases of a benchmark: every combination of what it varies.

use std::fmt;

use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use serde::{Serialize, Serializer};

use super::BenchConfig;
use crate::config::{ModelConfig, automatic_threads};
use crate::model::BitNetModel;

/// How a case was asked to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// The SIMD level by name.
    pub simd_level: String,
    /// Compute threads.
    pub threads: usize,
    /// How ternary weights were to be packed; none: as a timing while loading finds faster.
    #[serde(serialize_with = "packing")]
    pub packing: Option<Packing>,
    /// How the output head was to be held.
    #[serde(serialize_with = "name")]
    pub head: HeadType,
    /// How keys and values were to be stored.
    #[serde(serialize_with = "name")]
    pub kv_dtype: KvType,
    /// Whether norms, quantization and all else between products were computed with these, as the engine does.
    pub fused: bool,
}

fn name<S: Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn packing<S: Serializer>(packing: &Option<Packing>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(packing.map_or("auto", Packing::name))
}

impl Setup {
    /// The level, the threads, and whatever else differs from the model's own settings.
    pub(super) fn of(model: &ModelConfig) -> Self {
        Self {
            simd_level: model.simd_level.clone().unwrap_or_else(|| "auto".into()),
            threads: match model.threads {
                0 => automatic_threads(),
                threads => threads,
            },
            packing: model.packing,
            head: model.head,
            kv_dtype: model.kv_dtype,
            fused: true,
        }
    }

    /// Every combination. Those that need other weights in memory are furthest apart.
    pub(super) fn all(model: &ModelConfig, config: &BenchConfig) -> Vec<Self> {
        let own = [Self::of(model)];
        let cases = vary(own.into(), &config.heads, |case, head| case.head = *head);
        let cases = vary(cases, &config.packings, |case, packing| case.packing = *packing);
        let cases = vary(cases, &config.kv_dtypes, |case, kv_dtype| case.kv_dtype = *kv_dtype);
        let cases = vary(cases, &config.simd_levels, |case, level| {
            case.simd_level.clone_from(level);
        });
        vary(cases, &config.threads, |case, threads| case.threads = *threads)
    }

    /// The model's settings for this case.
    pub(super) fn config(&self, model: &ModelConfig) -> ModelConfig {
        ModelConfig {
            simd_level: Some(self.simd_level.clone()),
            threads: self.threads,
            threads_batch: 0,
            packing: self.packing,
            head: self.head,
            kv_dtype: self.kv_dtype,
            ..model.clone()
        }
    }
}

/// Each case with each value; as they are where there are none.
fn vary<T>(cases: Vec<Setup>, values: &[T], set: impl Fn(&mut Setup, &T)) -> Vec<Setup> {
    if values.is_empty() {
        return cases;
    }
    let with = |case: &Setup, value: &T| {
        let mut case = case.clone();
        set(&mut case, value);
        case
    };
    cases.iter().flat_map(|case| values.iter().map(|value| with(case, value))).collect()
}

/// How weights, keys and values of a case lay in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Forms {
    /// Ternary weights: `2bit`, `1.6bit`, or both where matrices with scales for groups of columns do not suit the latter.
    pub packing: String,
    /// The output head: `int8`, `two-stage`, or its encoding in the file.
    pub head: String,
    /// Keys and values.
    pub kv_dtype: String,
}

impl Forms {
    /// Those of a loaded model whose file has the head in the encoding `stored`.
    pub(super) fn of(model: &BitNetModel, stored: &str) -> Self {
        let info = model.info();
        let chosen = info.packing.packing;
        let found = [chosen, Packing::TwoBits].into_iter().find(|packing| {
            super::bytes::packed_bytes(model.config(), *packing) == info.ternary_bytes
        });
        let both = || Packing::ALL.map(Packing::name).join(" and ");
        Self {
            packing: found.map_or_else(both, |packing| packing.name().to_owned()),
            head: match info.head {
                HeadType::File => stored.to_owned(),
                head => head.to_string(),
            },
            kv_dtype: info.kv_dtype.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_all_combinations_and_those_with_the_same_weights_are_neighbours() {
        let config = BenchConfig {
            threads: vec![1, 2],
            packings: vec![Some(Packing::TwoBits), None],
            heads: vec![HeadType::Int8, HeadType::TwoStage],
            kv_dtypes: vec![KvType::F16, KvType::Int8],
            ..BenchConfig::default()
        };
        let cases = Setup::all(&ModelConfig::default(), &config);
        assert_eq!(cases.len(), 16);
        let weights = |case: &Setup| (case.head, case.packing);
        let changes = cases.windows(2).filter(|pair| weights(&pair[0]) != weights(&pair[1]));
        assert_eq!(changes.count(), 3);
        assert!(cases.iter().all(|case| case.simd_level == "auto"));
        let json = serde_json::to_value(&cases[15]).unwrap();
        let expected = serde_json::json!({
            "simd_level": "auto", "threads": 2, "packing": "auto", "head": "two-stage", "kv_dtype": "int8",
            "fused": true
        });
        assert_eq!(json, expected);
    }
}
