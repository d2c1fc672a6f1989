//! What a model file holds: encodings, sizes, and what they would be in floats.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use bitnet::{Checkpoint, Error, OpenOptions};
use serde_json::json;

use super::Section;
use crate::args::ModelSource;
use crate::console::Console;
use crate::load;
use crate::report::{Align, Table, bytes};

/// Tensors of one encoding.
#[derive(Default)]
struct Group {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

pub fn sections(source: &ModelSource, console: &Console) -> Result<[Section; 2]> {
    let path = load::resolve(source, console)?;
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).map_err(Error::from)?;
    Ok(of_checkpoint(&path, &checkpoint))
}

/// What the model is, and its encodings.
pub fn of_checkpoint(path: &Path, checkpoint: &Checkpoint) -> [Section; 2] {
    let (config, groups) = (checkpoint.config(), groups(checkpoint));
    let all = groups.values().fold(Group::default(), |all, group| all.add(group));
    let mut table = Table::facts();
    table.row(["path", &path.display().to_string()]);
    table.row(["architecture", &config.architecture]);
    table.row(["layers", &format!("{} of width {}", config.num_hidden_layers, config.hidden_size)]);
    table.row(["vocabulary", &format!("{} tokens", config.vocab_size)]);
    table.row(["context", &format!("{} tokens", config.max_position_embeddings)]);
    table.row(["parameters", &count(all.parameters)]);
    table.row(["size", &bytes(all.bytes)]);
    table.row(["in f32", &all.against(4)]);
    table.row(["in f16", &all.against(2)]);
    let json = json!({
        "path": path.to_string_lossy(), "architecture": config.architecture, "parameters": all.parameters, "bytes": all.bytes,
        "context_length": config.max_position_embeddings,
        "f32_bytes": 4 * all.parameters, "f16_bytes": 2 * all.parameters,
    });
    let facts = Section { title: "Model", text: table.render("  "), json: ("model", json) };
    [facts, encodings(&groups)]
}

fn encodings(groups: &BTreeMap<&'static str, Group>) -> Section {
    let mut table = Table::new(&[
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.row(["encoding", "tensors", "parameters", "size", "bits each", "in f32", "in f16"]);
    for (name, group) in groups {
        let cells = [group.tensors.to_string(), count(group.parameters), bytes(group.bytes)];
        let bits = format!("{:.2}", 8.0 * group.bytes as f64 / group.parameters.max(1) as f64);
        let floats = [4, 2].map(|size| group.against(size));
        table.row([(*name).to_owned()].into_iter().chain(cells).chain([bits]).chain(floats));
    }
    let json = groups
        .iter()
        .map(|(name, g)| json!({ "encoding": name, "tensors": g.tensors, "parameters": g.parameters, "bytes": g.bytes }));
    let json = ("encodings", json.collect());
    Section { title: "Tensors by encoding", text: table.render("  "), json }
}

fn groups(checkpoint: &Checkpoint) -> BTreeMap<&'static str, Group> {
    /// Weights in one element of a packed tensor (`U8`), whose stored shape counts bytes.
    const PACKED: u64 = 4;
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let elements: u64 = tensor.shape.iter().map(|&n| n as u64).product();
        let parameters = if tensor.encoding == "U8" { PACKED * elements } else { elements };
        let one = Group { tensors: 1, parameters, bytes: tensor.bytes };
        let group = groups.entry(tensor.encoding).or_default();
        *group = std::mem::take(group).add(&one);
    }
    groups
}

impl Group {
    fn add(self, other: &Self) -> Self {
        Self {
            tensors: self.tensors + other.tensors,
            parameters: self.parameters + other.parameters,
            bytes: self.bytes + other.bytes,
        }
    }

    /// What it would take in floats of `size` bytes, and how many times as much that is.
    fn against(&self, size: u64) -> String {
        let floats = self.parameters * size;
        format!("{} ({:.1}×)", bytes(floats), floats as f64 / self.bytes.max(1) as f64)
    }
}

/// `2.41 B`, `5.78 M`, `384`.
fn count(parameters: u64) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} K", n / 1e3),
        _ => parameters.to_string(),
    }
}
