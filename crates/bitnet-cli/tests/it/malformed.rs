//! Damaged, lying and hostile model files: each is refused with exit code 2 and a message that says where, what was found,
//! what was expected and what to try, soon and in little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::{program, testdata};

/// Waits for a program that may hang, and ends it after this long.
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Refused as bad input, with a message that has all of these parts and a hint.
#[track_caller]
fn check_with(args: &[&str], model: &Path, parts: &[&str]) {
    let mut command = program();
    command.args(args).arg("-m").arg(model);
    let output = finish(command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{parts:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{parts:?}");
    for part in [parts, &["\nhint: "]].concat() {
        assert!(stderr.contains(part), "should say `{part}`:\n{stderr}");
    }
}

const RUN: [&str; 6] = ["run", "-p", "Once", "-n2", "-t1", "-q"];

#[track_caller]
fn check(model: &Path, parts: &[&str]) {
    check_with(&RUN, model, parts);
}

/// A GGUF file, changed.
struct Gguf(Vec<u8>);

impl Gguf {
    fn new() -> Self {
        Self(fs::read(testdata("golden/gguf/bitnet-tiny-I2_S.gguf")).unwrap())
    }

    /// Where the bytes after this text begin.
    fn after(&self, text: &str) -> usize {
        let found = self.0.windows(text.len()).position(|window| window == text.as_bytes());
        found.unwrap_or_else(|| panic!("{text}")) + text.len()
    }

    fn put(mut self, place: usize, bytes: &[u8]) -> Self {
        self.0[place..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Gives a key, which keeps its type, another value.
    fn set(self, key: &str, value: &[u8]) -> Self {
        let place = self.after(key) + 4;
        self.put(place, value)
    }

    /// Changes the entry of a tensor of two dimensions in the table: rank, shape, type and offset have these places.
    fn tensor(self, name: &str, place: usize, bytes: &[u8]) -> Self {
        let place = self.after(name) + place;
        self.put(place, bytes)
    }

    /// Where the data of tensors begins; that of `token_embd.weight` is first and has 384 rows of 256 f16 each.
    fn data(&self) -> usize {
        let last = self.after("blk.1.ffn_sub_norm.weight"); // a vector, so the offset comes after rank, length and type
        let number = |place: usize| u64::from_le_bytes(self.0[place..][..8].try_into().unwrap());
        self.0.len() - (number(last + 16) + 4 * number(last + 4)) as usize
    }

    fn cut(mut self, len: usize) -> Self {
        self.0.truncate(len);
        self
    }
}

/// What a clone without Git LFS has in the place of a large file.
const LFS: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1182412448\n";

const SHAPE: usize = 4;
const TYPE: usize = 20;
const OFFSET: usize = 24;

#[test]
fn damaged_gguf_files_are_refused_with_the_reason() {
    let (new, n) = (Gguf::new, |n: u64| n.to_le_bytes());
    const ARCHITECTURE: &str = "general.architecture";
    const Q: &str = "blk.0.attn_q.weight";
    let len = new().0.len();
    let table: Vec<(Gguf, &[&str])> = vec![
        (new().cut(0), &["header needs 4 bytes", "the file has 0", "incomplete"]),
        (new().cut(100), &["number of tensors is 24", "as the file has 100 bytes"]),
        (new().cut(len - 1), &["tensor `blk.1.ffn_sub_norm.weight`", "needs", "the file has"]),
        (new().put(0, b"ggjt"), &["magic number is \"ggjt\"", "\"GGUF\""]),
        (new().put(0, b"FUGG"), &["a big-endian GGUF file", "take the ordinary, little-endian"]),
        (new().put(4, &[0, 0, 0, 3]), &["a big-endian GGUF file", "take the ordinary"]),
        (
            new().put(0, LFS),
            &["this is a Git LFS pointer", "a GGUF file is needed", "git lfs pull"],
        ),
        (new().put(0, b"\n<!doctype HTML>"), &["this is a web page", "download the file"]),
        (
            Gguf(fs::read(testdata("golden/bitnet-tiny/model.safetensors")).unwrap()),
            &["this is a safetensors file", "a GGUF file is needed", "call it model.safetensors"],
        ),
        (new().put(4, &[4]), &["GGUF version 4", "2 and 3"]),
        (new().put(4, &[0]), &["GGUF version 0"]),
        (new().put(8, &n(1 << 60)), &["number of tensors is 1152921504606846976", "at most"]),
        (new().put(16, &n(u64::MAX)), &["number of metadata pairs is 18446744073709551615"]),
        (new().set(ARCHITECTURE, &n(1 << 60)), &[ARCHITECTURE, "needs 1152921504606846976 bytes"]),
        (new().put(new().after(ARCHITECTURE), &[13]), &[ARCHITECTURE, "of type 13"]),
        (new().set("block_count", &[0xff; 4]), &["block_count` is 4294967295", "from 1 to 4096"]),
        (new().set("context_length", &[0xff; 4]), &["context_length` is 4294967295"]),
        (
            new().set("context_length", &0x7fff_ffff_u32.to_le_bytes()),
            &["`max_seq_len` is 2147483647", "fit in memory", "--ctx-size"],
        ),
        (new().set("head_count_kv", &[3]), &["head_count_kv` is 3", "a divisor of the 4"]),
        (
            new().set("rope.freq_base", &f32::NAN.to_le_bytes()),
            &["freq_base` is NaN", "a finite number above zero"],
        ),
        (
            new().set("norm_rms_epsilon", &0_f32.to_le_bytes()),
            &["epsilon` is 0.0", "a finite number above zero"],
        ),
        (new().set("eos_token_id", &[0xff; 4]), &["eos_token_id` is 4294967295", "size 384"]),
        (
            new().set("vocab_size", &[0x81]),
            &["tokens` is an array of 384 texts", "vocabulary's size 385"],
        ),
        (
            new().put(new().after("ggml.merges") + 24, b"~~~"),
            &[".gguf: `tokenizer.ggml.merges[0]`"],
        ),
        (new().tensor(Q, 0, &[9]), &["rank of tensor `blk.0.attn_q.weight` is 9", "1 to 4"]),
        (new().tensor(Q, SHAPE, &n(0)), &["shape of tensor `blk.0.attn_q.weight` is [0, 256]"]),
        (new().tensor(Q, SHAPE, &n(1 << 59)), &[Q, "whose product fits a file"]),
        (new().tensor(Q, SHAPE, &n(512)), &[Q]),
        (new().tensor(Q, TYPE, &[4]), &[Q, "type 4", "no such type"]),
        (new().tensor(Q, TYPE, &[12]), &[Q, "past the end of tensor"]),
        (new().tensor(Q, OFFSET, &n(1 << 60)), &[Q, "is 1152921504606846976", "within the"]),
        (new().tensor(Q, OFFSET, &[1]), &[Q, "a multiple of the alignment 32"]),
        (new().tensor(Q, OFFSET, &n(0)), &["offset of tensor", "past the end of tensor"]),
        (new().put(new().after(Q) - 6, b"bias.0"), &["blk.0.attn_q.bias.0", "is unexpected"]),
        (
            new().put(new().after("blk.1.attn_q.weight") - 15, b"0"),
            &["`blk.0.attn_q.weight`, which an earlier tensor has"],
        ),
        (new().put(len - 4, &f32::NAN.to_le_bytes()), &["blk.1.ffn_sub_norm.weight", "is NaN"]),
        (
            new().put(new().data() + 2 * (383 * 256 + 7), &[0, 0xfc]),
            &["m.gguf: row 383, column 7 of tensor `token_embd.weight` is -inf", "finite number"],
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for (file, parts) in table {
        fs::write(&path, file.0).unwrap();
        check(&path, parts);
    }
}

/// A model directory in which files can be replaced.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        {
            fs::copy(testdata("golden/bitnet-tiny").join(name), folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces a part of a JSON file.
    fn edit(self, name: &str, from: &str, to: &str) -> Self {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        self.write(name, text.replacen(from, to, 1))
    }

    fn write(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(name), content).unwrap();
        self
    }
}

#[test]
fn damaged_directories_are_refused_with_the_reason() {
    let new = Directory::new;
    const CONFIG: &str = "config.json";
    const TOKENIZER: &str = "tokenizer.json";
    const WEIGHTS: &str = "model.safetensors";
    let table: Vec<(Directory, &[&str])> = vec![
        (new().write(CONFIG, ""), &[CONFIG, "not the JSON", "line 1"]),
        (new().write(CONFIG, "<!DOCTYPE html>"), &[CONFIG, "this is a web page", "JSON is needed"]),
        (new().write(CONFIG, LFS), &[CONFIG, "this is a Git LFS pointer", "git lfs pull"]),
        (new().write(TOKENIZER, LFS), &[TOKENIZER, "this is a Git LFS pointer", "git lfs pull"]),
        (new().write(TOKENIZER, "<html>"), &[TOKENIZER, "this is a web page", "download the file"]),
        (
            new().write(WEIGHTS, LFS),
            &[WEIGHTS, "this is a Git LFS pointer", "a safetensors file is needed", "git lfs pull"],
        ),
        (new().write(WEIGHTS, "<!DOCTYPE html>"), &[WEIGHTS, "this is a web page"]),
        (new().write(WEIGHTS, Gguf::new().0), &[WEIGHTS, "this is a GGUF file", ".gguf"]),
        (
            new().write(WEIGHTS, b"\0\0\0\0\0\0\0\x02{}"),
            &[WEIGHTS, "a big-endian safetensors file", "little-endian"],
        ),
        (new().write(CONFIG, "[".repeat(1 << 20)), &[CONFIG, "recursion limit"]),
        (new().write(CONFIG, b"{\"a\":\"\xff\"}"), &[CONFIG, "not the JSON"]),
        (new().write(CONFIG, " ".repeat((16 << 20) + 1)), &[CONFIG, "more than 16777216 bytes"]),
        (
            new().edit(CONFIG, "{", "{\"hidden_size\": 256,"),
            &[CONFIG, "`hidden_size` occurs twice"],
        ),
        (
            new().edit(CONFIG, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000"),
            &["`num_hidden_layers` is 1000000000", "from 1 to 4096"],
        ),
        (
            new().edit(CONFIG, "\"num_attention_heads\": 4", "\"num_attention_heads\": 1000000000"),
            &["`num_attention_heads` is 1000000000"],
        ),
        (new().edit(CONFIG, "500000.0", "-1"), &["`rope_theta` is -1", "above zero"]),
        (
            new().edit(CONFIG, "\"eos_token_id\": 377", "\"eos_token_id\": [377, 384]"),
            &["`eos_token_id` is 384", "size 384"],
        ),
        (new().write(TOKENIZER, "{}"), &[TOKENIZER, "`model` is missing"]),
        (new().write(TOKENIZER, b"\"\xff\""), &[TOKENIZER, "not UTF-8 text from byte 1 on"]),
        (
            new().edit(TOKENIZER, "\"merges\": [", "\"merges\": [[\"qq\", \"rr\"],"),
            &[TOKENIZER, "merges", "\"qq\" is not a token"],
        ),
        (
            new().edit(TOKENIZER, "\"vocab\": {", "\"vocab\": {\"zzz\": 4000000000,"),
            &[TOKENIZER, "4000000000"],
        ),
        (
            new().edit(TOKENIZER, "\"vocab\": {", "\"vocab\": {\"zzz\": 384,"),
            &["tokenizer.json: the tokenizer has 385 tokens", "model.safetensors only 384 rows"],
        ),
        (new().write(WEIGHTS, ""), &[WEIGHTS, "needs 8 bytes"]),
        (
            new().write("model.safetensors", (1_u64 << 60).to_le_bytes()),
            &["length of the table is 1152921504606846976", "at most 16777216"],
        ),
        (new().write(WEIGHTS, b"\x02\0\0\0\0\0\0\0{}"), &["is missing", "needs it as"]),
    ];
    for (directory, parts) in table {
        check(directory.0.path(), parts);
    }
}

#[test]
fn an_empty_directory_is_refused_with_what_a_model_is() {
    let folder = tempfile::tempdir().unwrap();
    check(folder.path(), &["there is no model.safetensors", "no .gguf file", "config.json"]);
}

/// A file that is long on paper only, with a text that is as long as the file allows.
#[test]
#[cfg(target_os = "linux")]
fn a_text_of_a_sparse_file_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    for number in [1, 1, 1 << 38_u64] {
        bytes.extend(u64::to_le_bytes(number));
    }
    fs::write(&path, bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 39).unwrap();
    check(&path, &["metadata key 0 is a text of 274877906944 bytes", "all texts together"]);
}

/// Opening a pipe waits for a writer, and some devices never end.
#[test]
#[cfg(unix)]
fn pipes_and_devices_are_refused_and_not_read() {
    let pipe = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    pipe(&path);
    check(&path, &["m.gguf", "neither a file nor a directory"]);
    check(Path::new("/dev/zero"), &["/dev/zero", "neither a file nor a directory"]);
    let others = ["generation_config.json", "special_tokens_map.json", "chat_template.jinja"];
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"].into_iter().chain(others)
    {
        let directory = Directory::new();
        let path = directory.path(name);
        let _ = fs::remove_file(&path); // some of them are not there
        pipe(&path);
        check(directory.0.path(), &[name, "a pipe or device", "put a regular file there"]);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        check(directory.0.path(), &[name, "a pipe or device"]);
    }
}

/// A model directory whose chat template is this expression.
fn with_template(expression: &str) -> Directory {
    let config = serde_json::json!({ "chat_template": format!("{{{{ {expression} }}}}") });
    Directory::new().write("tokenizer_config.json", config.to_string())
}

/// Templates are compiled when a model is loaded, whether or not anyone wants to chat.
#[test]
fn chains_of_operators_in_a_template_do_not_use_up_the_stack() {
    for (operand, operator, count) in
        [("a", ".b", 60_000), ("1", "+1", 60_000), ("a", "|trim", 24_000), ("1", "**1", 40_000)]
    {
        let directory = with_template(&(operand.to_owned() + &operator.repeat(count)));
        let mut command = program();
        command.args(RUN).arg("-m").arg(directory.0.path());
        let output = finish(command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{operator}: {stderr}");
    }
    for operator in ["-", "not "] {
        let directory = with_template(&(operator.repeat(120_000 / operator.len()) + "1"));
        let mut command = program();
        command.args(RUN).arg("-m").arg(directory.0.path());
        assert_eq!(finish(command).status.code(), Some(0), "{operator}");
    }
}

#[test]
fn hostile_chat_templates_are_refused_with_the_reason() {
    let table = [
        ("1".repeat(1 << 17), "at most 131072"),
        ("raise_exception('no \u{1b}[31mway')".to_owned(), "conversation: no \\u{1b}[31mway"),
    ];
    for (expression, reason) in table {
        let directory = with_template(&expression);
        let mut command = program();
        command.args(RUN).args(["--chat", "-m"]).arg(directory.0.path());
        let output = finish(command);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{reason}: {stderr}");
        assert!(stderr.contains(reason), "should say {reason}: {stderr}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_path_that_is_no_text_is_no_obstacle() {
    use std::os::unix::ffi::OsStringExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsString::from_vec(b"m\xff.gguf".to_vec()));
    fs::write(&path, Gguf::new().0).unwrap();
    for json in [&["info", "--json"][..], &["info"]] {
        let mut command = program();
        command.args(json).arg("-m").arg(&path);
        let output = finish(command);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
