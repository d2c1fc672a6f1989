//! What holds for every file of packed weights, however hostile. The fuzz target and an ordinary test share this.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_kernels::backend::{Backend, Norm};
use bitnet_kernels::cpu::{CpuBackend, isa::Isa};
use bitnet_kernels::dense::{DenseMatrix, DenseType};
use bitnet_kernels::logits::{Logits, Others, Wanted};
use bitnet_kernels::stored::Stored;
use bitnet_model::format::packed::{PackedFile, Place, origin, sum::sum};
use serde_json::{Value, json};

/// What the files are asked for with.
const KEY: &str = "k";

/// Where the sections of a file with a short header begin.
const SECTIONS: u64 = 2 << 20;

/// Bytes of one check sum.
const BLOCK: usize = 4 << 20;

/// The shapes that matrices are asked for in: small ones of each kind, and a few that no matrix has.
const SHAPES: [(usize, usize); 6] =
    [(16, 64), (5, 20), (32, 160), (1, 1), (0, 64), (usize::MAX, usize::MAX)];

/// Opens files in a folder and uses what they hold.
pub struct Checker {
    file: PathBuf,
    backend: CpuBackend,
}

impl Checker {
    pub fn new(folder: &Path) -> Self {
        let backend = CpuBackend::new(Isa::best(), 1).expect("one thread is the caller's own");
        Self { file: folder.join("x.bitnet-packed"), backend }
    }

    /// How many of the file's matrices there are, and how many of them have one of the shapes; none if it is refused.
    pub fn run(&self, data: &[u8]) -> Option<(usize, usize)> {
        let names = self.write(data);
        let _ = origin(&self.file);
        let places = [Place::Memory, Place::Layers(1), Place::File];
        let open = |place| PackedFile::open(&self.file, KEY, place, 1).ok();
        let [memory, layers, mapped] = places.map(open);
        assert_eq!(memory.is_some(), mapped.is_some());
        assert_eq!(layers.is_some(), mapped.is_some());
        self.give_back(&layers?, &names);
        let (memory, mapped) = (memory?, mapped?);
        let stored: Vec<_> = names.iter().filter_map(|name| mapped.get(name)).collect();
        assert!(
            stored.iter().eq(&names.iter().filter_map(|name| memory.get(name)).collect::<Vec<_>>())
        );
        let mut used = vec![false; stored.len()];
        for shape in SHAPES {
            for (i, matrix) in stored.iter().enumerate() {
                used[i] |= self.compute(shape, matrix);
                // A head may have two parts.
                for parts in [&stored[i..=i], stored.get(i..i + 2).unwrap_or_default()] {
                    if self.compute_head(shape, parts) {
                        used[i..i + parts.len()].fill(true);
                    }
                }
            }
        }
        Some((names.len(), used.into_iter().filter(|used| *used).count()))
    }

    /// Writes the file, and says what the matrices in it should be called.
    ///
    /// An input is such a file; or its header, a NUL byte and its sections; or a list of sections in place of the header,
    /// around which all else is as it should be.
    fn write(&self, data: &[u8]) -> Vec<String> {
        if data.starts_with(b"BITNETPK") {
            fs::write(&self.file, data).expect("the folder can be written to");
            return Vec::new();
        }
        let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
        let (header, bytes) = (&data[..end], data.get(end + 1..).unwrap_or_default());
        let json = serde_json::from_slice(header).unwrap_or(Value::Null);
        let (header, sections) = match &json {
            Value::Array(sections) => {
                let sums: Vec<_> =
                    bytes.chunks(BLOCK).map(|block| format!("{:016x}", sum(block))).collect();
                let header = json!({"key": KEY, "source": "m", "sections": sections, "sums": sums});
                (header.to_string().into_bytes(), Some(sections))
            }
            json => (header.to_vec(), json["sections"].as_array()),
        };
        self.write_parts(&header, bytes).expect("the folder can be written to");
        let name = |section: &Value| section["name"].as_str().map(str::to_owned);
        sections.into_iter().flatten().filter_map(name).collect()
    }

    fn write_parts(&self, header: &[u8], bytes: &[u8]) -> std::io::Result<()> {
        let mut prefix = [0; 64];
        prefix[..8].copy_from_slice(b"BITNETPK");
        prefix[8..12].copy_from_slice(&1_u32.to_le_bytes());
        prefix[12..16].copy_from_slice(&(header.len() as u32).to_le_bytes());
        prefix[16..24].copy_from_slice(&(SECTIONS + bytes.len() as u64).to_le_bytes());
        prefix[24..32].copy_from_slice(&sum(header).to_le_bytes());
        let mut file = File::create(&self.file)?;
        file.write_all(&prefix)?;
        file.write_all(header)?;
        file.set_len(SECTIONS + bytes.len() as u64)?; // shorter, if the header is too long
        file.seek(SeekFrom::Start(SECTIONS))?;
        file.write_all(bytes)
    }

    /// What a bound on the layers in memory does: their pages are given back and fetched again.
    fn give_back(&self, file: &PackedFile, names: &[String]) {
        let mapping = file.mapping().expect("it is mapped");
        for (first, last) in names.iter().zip(names.iter().skip(1)) {
            if let (Some(first), Some(last)) = (file.place_of(first), file.place_of(last)) {
                assert!(first.end.max(last.end) <= mapping.bytes().len());
                mapping.release(first.start..last.end);
                mapping.fetch(first.start..last.end);
            }
        }
    }

    /// Computes with a layer's matrix, if it is one of this shape.
    fn compute(&self, (rows, cols): (usize, usize), stored: &Stored) -> bool {
        let ternary = self.backend.restore_ternary(rows, cols, stored);
        if let Some(matrix) = &ternary {
            for tokens in [1, 3] {
                let x: Vec<_> = (0..tokens * cols).map(|i| (i % 7) as f32 - 3.0).collect();
                assert_eq!(self.backend.linear(matrix, &x).len(), tokens * rows);
            }
        }
        ternary.is_some()
    }

    /// Computes with a head, if it is one of this shape.
    fn compute_head(&self, (rows, cols): (usize, usize), stored: &[Stored]) -> bool {
        let head = self.backend.restore_head(rows, cols, stored);
        if let Some(head) = &head {
            let bytes = (0..2 * cols).flat_map(|i| ((i % 5) as f32 - 2.0).to_le_bytes());
            let x = DenseMatrix::new(2, cols, DenseType::F32, bytes.collect::<Vec<_>>().into());
            let (mut scratch, mut x_rows) = (self.backend.scratch(), self.backend.activations());
            self.backend.embed(&x.expect("two rows"), &[0, 1], &mut x_rows);
            let norm = Norm { weight: vec![1.0; cols], eps: 1e-5 };
            let greedy = Wanted::Some { always: Vec::new(), others: Others::Greatest(1) };
            let wanted = [(0, Wanted::All), (1, greedy)];
            let mut logits = Logits::default();
            self.backend.logits(&mut scratch, &x_rows, &wanted, &norm, head, &mut logits);
            assert_eq!(logits.len(), 2);
        }
        head.is_some()
    }
}
