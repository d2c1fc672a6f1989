//! `cache`: what is kept of packed weights, and deleting it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use bitnet::{CachedFile, CachedKind, PackedCache};
use serde_json::{Value, json};

use crate::cache::{self, CachePlace};
use crate::console::Console;
use crate::failure::Failure;
use crate::report::{self, Align, Table, plural};

/// Show or delete the packed weights that are kept between starts
#[derive(clap::Args)]
pub struct CacheCommandArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    List(ListArgs),
    Clear(ClearArgs),
}

/// Show which packed weights are kept, the ones used last at the end
#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: CachePlace,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Delete packed weights, but for those in use; the next load makes them anew
#[derive(clap::Args)]
struct ClearArgs {
    /// The models whose packed weights go, by their paths as `list` shows them [default: everything that is kept]
    #[arg(value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: CachePlace,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn run(args: &CacheCommandArgs, console: &Console) -> Result<()> {
    match &args.action {
        Action::List(args) => list(args),
        Action::Clear(args) => clear(args, console),
    }
}

fn open(place: &CachePlace) -> Result<(PackedCache, Vec<CachedFile>)> {
    let cache = place.config(&cache::environment)?.ok_or_else(|| {
        Failure::input("there is no folder for packed weights: this user has no home")
            .hint("give it with --cache-dir DIR or BITNET_CACHE_DIR=DIR")
    })?;
    let files = cache.files().map_err(|error| {
        Failure::input(format!("{}: {error}", cache.folder.display()))
            .hint("give another folder with --cache-dir DIR or BITNET_CACHE_DIR=DIR")
    })?;
    Ok((cache, files))
}

fn list(args: &ListArgs) -> Result<()> {
    let (cache, mut files) = open(&args.place)?;
    files.retain(|file| file.kind == CachedKind::Weights);
    let total = files.iter().map(|file| file.bytes).sum();
    let mut out = io::stdout().lock();
    if args.json {
        let object = json!({
            "folder": cache.folder,
            "bytes": total,
            "max_bytes": (cache.max_bytes != u64::MAX).then_some(cache.max_bytes),
            "files": files.iter().map(as_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{object:#}")?;
        return Ok(out.flush()?);
    }
    let mut facts = Table::facts();
    facts.row(["folder", &cache.folder.display().to_string()]);
    let bound = match cache.max_bytes {
        u64::MAX => "no bound".to_owned(),
        bytes => format!("of {}", report::bytes(bytes)),
    };
    facts.row(["size", &format!("{}, {bound}", report::bytes(total))]);
    write!(out, "{}", facts.render(""))?;
    if !files.is_empty() {
        write!(out, "\n{}", table(&files).render(""))?;
    }
    Ok(out.flush()?)
}

fn table(files: &[CachedFile]) -> Table {
    let mut table = Table::new(&[Align::Right, Align::Left, Align::Left, Align::Left]);
    table.row(["size", "last used", "form", "model"]);
    for file in files {
        let age = SystemTime::now().duration_since(file.last_used).unwrap_or_default();
        let used = if file.is_in_use() { "in use".to_owned() } else { ago(age) };
        let (layout, model) = match file.origin() {
            Some(origin) => (origin.layout, origin.model.display().to_string()),
            None => ("of another version, or damaged".to_owned(), file.path.display().to_string()),
        };
        table.row([report::bytes(file.bytes), used, layout, model]);
    }
    table
}

fn as_json(file: &CachedFile) -> Value {
    let used = file.last_used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let origin = file.origin();
    json!({
        "path": file.path,
        "model": origin.as_ref().map(|origin| &origin.model),
        "form": origin.as_ref().map(|origin| &origin.layout),
        "bytes": file.bytes,
        "last_used": used.as_secs(),
        "in_use": file.is_in_use(),
    })
}

fn clear(args: &ClearArgs, console: &Console) -> Result<()> {
    let (cache, mut files) = open(&args.place)?;
    if !args.models.is_empty() {
        let origins: Vec<_> = files.iter().map(|file| Some(file.origin()?.model)).collect();
        let wanted: Vec<_> = args.models.iter().map(PathBuf::as_path).map(canonical).collect();
        for (model, wanted) in args.models.iter().zip(&wanted) {
            if !origins.iter().flatten().any(|model| model == wanted) {
                let message = format!("no packed weights of {} are kept", model.display());
                let hint = "`bitnet-cli cache list` shows of which models there are";
                return Err(Failure::input(message).hint(hint).into());
            }
        }
        let mut origins = origins.into_iter();
        files.retain(|_| origins.next().flatten().is_some_and(|model| wanted.contains(&model)));
    }
    let (mut deleted, mut kept) = (Vec::new(), Vec::new());
    for file in files {
        let gone = match args.dry_run {
            true => !file.is_in_use(),
            false => file.delete()?,
        };
        if gone { deleted.push(file) } else { kept.push(file) }
    }
    for file in &kept {
        console.warn(&format!("{} is in use and stays", file.path.display()));
    }
    let bytes = deleted.iter().map(|file| file.bytes).sum();
    let mut out = io::stdout().lock();
    if args.json {
        let paths = |files: &[CachedFile]| -> Vec<_> {
            files.iter().map(|file| json!(file.path)).collect()
        };
        let object = json!({
            "folder": cache.folder, "dry_run": args.dry_run, "bytes": bytes,
            "deleted": paths(&deleted), "in_use": paths(&kept),
        });
        writeln!(out, "{object:#}")?;
    } else {
        let what = if args.dry_run { "would delete" } else { "deleted" };
        let (count, bytes) = (plural(deleted.len(), "file"), report::bytes(bytes));
        writeln!(out, "{what} {count}, {bytes}, in {}", cache.folder.display())?;
    }
    Ok(out.flush()?)
}

/// As paths are kept; also of a model that is not there any more.
fn canonical(model: &Path) -> PathBuf {
    fs::canonicalize(model)
        .or_else(|_| std::path::absolute(model))
        .unwrap_or_else(|_| model.to_owned())
}

/// `3 hours ago`.
fn ago(age: Duration) -> String {
    let units = [(86400, "day"), (3600, "hour"), (60, "minute")];
    let age = age.as_secs();
    match units.into_iter().find(|(unit, _)| age >= *unit) {
        Some((unit, name)) => format!("{} ago", plural((age / unit) as usize, name)),
        None => "just now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_greatest_unit() {
        let told = [59, 60, 3599, 3600, 7200, 86400 * 3 + 5].map(|s| ago(Duration::from_secs(s)));
        let expected = [
            "just now",
            "1 minute ago",
            "59 minutes ago",
            "1 hour ago",
            "2 hours ago",
            "3 days ago",
        ];
        assert_eq!(told, expected);
    }
}
