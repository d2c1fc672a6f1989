//! Dimensions of published models, and of one's own.

use anyhow::Result;
use clap::ValueEnum;

use super::Sizes;
use crate::failure::Failure;

/// Published models by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// microsoft/bitnet-b1.58-2B-4T
    #[value(name = "2b-4t")]
    B2_4T,
    /// tiiuae/Falcon3-1B-Instruct-1.58bit
    #[value(name = "falcon3-1b")]
    Falcon3_1B,
    /// tiiuae/Falcon3-7B-Instruct-1.58bit
    #[value(name = "falcon3-7b")]
    Falcon3_7B,
    /// HF1BitLLM/Llama3-8B-1.58-100B-tokens
    #[value(name = "llama3-8b")]
    Llama3_8B,
    /// Two small layers, for tests
    Tiny,
}

/// What a synthetic model is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Dimensions {
    pub name: String,
    pub architecture: &'static str,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tied_head: bool,
}

impl Dimensions {
    /// The preset's dimensions, or a BitNet's without one, with what the command line says instead.
    pub fn new(preset: Option<Preset>, sizes: &Sizes) -> Result<Self> {
        let mut it = match preset {
            Some(preset) => preset.dimensions(),
            None => Self { name: "synthetic".into(), ..Preset::B2_4T.dimensions() },
        };
        let given = |size: Option<u32>| size.map(|size| size as usize);
        it.hidden = given(sizes.hidden).unwrap_or(it.hidden);
        it.ffn = given(sizes.ffn).unwrap_or(it.ffn);
        it.layers = given(sizes.layers).unwrap_or(it.layers);
        it.head_dim = given(sizes.head_dim).unwrap_or(it.head_dim);
        it.vocab = given(sizes.vocab).unwrap_or(it.vocab);
        let other_heads =
            sizes.hidden.is_some() || sizes.head_dim.is_some() || sizes.heads.is_some();
        if other_heads {
            it.heads = given(sizes.heads).unwrap_or(it.hidden / it.head_dim);
            it.kv_heads = it.heads;
        }
        it.kv_heads = given(sizes.kv_heads).unwrap_or(it.kv_heads);
        it.check()?;
        Ok(it)
    }

    fn check(&self) -> Result<()> {
        let Self { hidden, heads, kv_heads, head_dim, .. } = self;
        let problem = if *heads == 0 {
            format!("no head of width {head_dim} fits into a hidden size of {hidden}")
        } else if !heads.is_multiple_of(*kv_heads) {
            format!("{heads} query heads cannot share {kv_heads} key and value heads evenly")
        } else if !head_dim.is_multiple_of(2) {
            format!("heads of the odd width {head_dim} cannot be rotated in pairs")
        } else {
            return Ok(());
        };
        Err(Failure::input(problem).hint("choose other --heads, --kv-heads or --head-dim").into())
    }
}

impl Preset {
    fn dimensions(self) -> Dimensions {
        let bitnet = Dimensions {
            name: "synthetic 2B-4T".into(),
            architecture: "bitnet-b1.58",
            hidden: 2560,
            ffn: 6912,
            layers: 30,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            vocab: 128_256,
            context: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            tied_head: true,
        };
        let llama = Dimensions { architecture: "llama", tied_head: false, ..bitnet.clone() };
        let falcon3 = Dimensions {
            vocab: 131_072,
            head_dim: 256,
            kv_heads: 4,
            rms_norm_eps: 1e-6,
            rope_theta: 1_000_042.0,
            ..llama.clone()
        };
        match self {
            Self::B2_4T => bitnet,
            Self::Falcon3_1B => Dimensions {
                name: "synthetic Falcon3-1B".into(),
                hidden: 2048,
                ffn: 8192,
                layers: 18,
                heads: 8,
                ..falcon3
            },
            Self::Falcon3_7B => Dimensions {
                name: "synthetic Falcon3-7B".into(),
                hidden: 3072,
                ffn: 23_040,
                layers: 28,
                heads: 12,
                context: 32_768,
                ..falcon3
            },
            Self::Llama3_8B => Dimensions {
                name: "synthetic Llama3-8B".into(),
                hidden: 4096,
                ffn: 14_336,
                layers: 32,
                heads: 32,
                kv_heads: 8,
                context: 8192,
                ..llama
            },
            Self::Tiny => Dimensions {
                name: "synthetic tiny".into(),
                hidden: 256,
                ffn: 768,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocab: 1024,
                context: 512,
                ..bitnet
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Sizes = Sizes {
        hidden: None,
        ffn: None,
        layers: None,
        heads: None,
        kv_heads: None,
        head_dim: None,
        vocab: None,
    };

    fn heads(preset: Option<Preset>, sizes: Sizes) -> Option<(usize, usize)> {
        Dimensions::new(preset, &sizes).ok().map(|it| (it.heads, it.kv_heads))
    }

    #[test]
    fn heads_follow_the_hidden_size() {
        assert_eq!(heads(None, NONE), Some((20, 5)));
        assert_eq!(heads(None, Sizes { hidden: Some(2048), ..NONE }), Some((16, 16)));
        let grouped = Sizes { hidden: Some(2048), kv_heads: Some(4), ..NONE };
        assert_eq!(heads(Some(Preset::Tiny), grouped), Some((32, 4)));
        assert_eq!(heads(Some(Preset::Tiny), Sizes { layers: Some(9), ..NONE }), Some((4, 2)));
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        assert_eq!(heads(None, Sizes { hidden: Some(64), ..NONE }), None);
        assert_eq!(heads(None, Sizes { heads: Some(6), kv_heads: Some(4), ..NONE }), None);
        assert_eq!(heads(None, Sizes { head_dim: Some(3), ..NONE }), None);
    }
}
