//! What a chat template may make: bytes of text, nodes of lists and maps, levels of nesting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{
    Environment, Error, ErrorKind, State, Value, escape_formatter, filters, functions,
};

use super::chat_functions;
use super::chat_program::{ADD, COMPARE, CONCAT, KEEP, MUL, STORE};

/// Bytes that a node of a list or map counts for: a value and its share of the allocation.
const NODE: usize = 32;

/// Levels of lists and maps. Messages and tool definitions have up to ten.
const MAX_DEPTH: usize = 32;

/// A character written as an escape (`\u{7f}`) takes up to eight.
const ESCAPED: usize = 8;

/// A text cut into a list of characters takes this many bytes for each of its own.
const CUT: usize = 32;

/// Numbers that say how wide or how many.
const MAX_COUNT: usize = 10_000;

/// Counts down what one rendering makes, whether or not it is freed again.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
    /// How large one value may be.
    largest: usize,
}

impl Budget {
    pub(super) fn new(total: usize, largest: usize) -> Arc<Self> {
        Arc::new(Self { left: total.into(), largest })
    }

    fn spend(&self, bytes: usize) -> Result<(), Error> {
        let take = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Relaxed, Relaxed, take).map(drop).map_err(|_| exhausted())
    }

    /// Fails if there is less than this; takes nothing.
    fn require(&self, bytes: usize) -> Result<(), Error> {
        if self.left.load(Relaxed) < bytes { Err(exhausted()) } else { Ok(()) }
    }

    /// The size of a value when all that it shares is copied, as writing or comparing it does.
    fn weigh(&self, value: &Value) -> Result<usize, Error> {
        let mut weight = 0;
        self.add_weight(value, 0, &mut weight)?;
        Ok(weight)
    }

    fn add_weight(&self, value: &Value, depth: usize, weight: &mut usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.spend(1)?;
        *weight += NODE + value.as_bytes().map_or(0, <[u8]>::len);
        self.require(*weight)?;
        match Shape::of(value) {
            Shape::Leaf | Shape::Opaque => {}
            Shape::List => {
                for item in value.try_iter()?.checked() {
                    self.add_weight(&item?, depth + 1, weight)?;
                }
            }
            Shape::Map | Shape::Namespace => {
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    self.add_weight(&key, depth + 1, weight)?;
                    self.add_weight(&value.get_item(&key)?, depth + 1, weight)?;
                }
            }
        }
        Ok(())
    }

    /// A value to be named: small and flat enough, and without iterators over iterators.
    fn store(&self, value: &Value, keep: bool) -> Result<Value, Error> {
        match Shape::of(value) {
            // These live no longer than the loop or the macro they belong to, unless a namespace keeps them.
            Shape::Opaque | Shape::Namespace if keep => Err(invalid("a namespace keeps data only")),
            Shape::Opaque | Shape::Namespace => Ok(value.clone()),
            Shape::Leaf => {
                self.spend(value.as_bytes().map_or(0, <[u8]>::len))?;
                Ok(value.clone())
            }
            Shape::List | Shape::Map => {
                if self.weigh(value)? > self.largest {
                    return Err(exhausted());
                }
                Ok(self.plain(value)?.unwrap_or_else(|| value.clone()))
            }
        }
    }

    /// The same data in lists and maps of their own, or none if it is there already.
    fn plain(&self, value: &Value) -> Result<Option<Value>, Error> {
        match Shape::of(value) {
            Shape::Leaf => Ok(None),
            Shape::Opaque | Shape::Namespace => Err(invalid("lists and maps hold data only")),
            // What `groupby` gives has names besides its items; it is no deeper than `weigh` allows.
            Shape::List if type_name(value).ends_with("GroupTuple") => Ok(None),
            Shape::List => {
                let mut changed = is_lazy(value);
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    let item = item?;
                    let plain = self.plain(&item)?;
                    changed |= plain.is_some();
                    items.push(plain.unwrap_or(item));
                }
                if changed {
                    self.spend(NODE * items.len())?;
                }
                Ok(changed.then(|| items.into()))
            }
            Shape::Map => {
                let (mut changed, mut pairs) = (!type_name(value).contains("Map"), Vec::new());
                for key in value.try_iter()?.checked() {
                    let (key, item) = {
                        let key = key?;
                        let item = value.get_item(&key)?;
                        (key, item)
                    };
                    let (plain_key, plain) = (self.plain(&key)?, self.plain(&item)?);
                    changed |= plain.is_some() || plain_key.is_some();
                    pairs.push((plain_key.unwrap_or(key), plain.unwrap_or(item)));
                }
                if changed {
                    self.spend(NODE * pairs.len())?;
                }
                Ok(changed.then(|| Value::from_pairs(pairs)))
            }
        }
    }

    /// The attributes that a namespace starts with.
    fn attributes(&self, values: &Value) -> Result<Value, Error> {
        let mut pairs = Vec::new();
        for key in values.try_iter()?.checked() {
            let key = key?;
            let value = self.store(&values.get_item(&key)?, true)?;
            pairs.push((key, value));
        }
        Ok(Value::from_pairs(pairs))
    }

    /// Before an operator makes a value of these two, which it gives back in the order that minijinja pops them.
    fn operands(&self, name: &str, left: Value, right: Value) -> Result<Value, Error> {
        match (name, left.as_bytes(), right.as_bytes()) {
            (MUL, Some(text), _) => self.repeat(text.len(), &right)?,
            (MUL, _, Some(text)) => self.repeat(text.len(), &left)?,
            (MUL, ..) => {
                self.repeat(NODE * left.len().unwrap_or(0), &right)?;
                self.repeat(NODE * right.len().unwrap_or(0), &left)?;
            }
            (_, Some(left), Some(right)) => self.spend(left.len() + right.len())?,
            // Other values are written out, which `in` does too if it looks for one in a text.
            (CONCAT | COMPARE, ..) => {
                let weight = self.weigh(&left)? + self.weigh(&right)?;
                self.spend(weight.saturating_mul(ESCAPED))?;
            }
            _ => {
                let items = left.len().unwrap_or(0).saturating_add(right.len().unwrap_or(0));
                self.spend(items.saturating_mul(NODE))?;
            }
        }
        Ok(vec![right, left].into())
    }

    fn repeat(&self, bytes: usize, count: &Value) -> Result<(), Error> {
        self.spend(bytes.saturating_mul(count.as_usize().unwrap_or(0)))
    }

    /// Before a value is written.
    fn write(&self, value: &Value, escaped: bool) -> Result<(), Error> {
        match value.as_bytes() {
            Some(text) => self.spend(text.len() * if escaped { ESCAPED } else { 1 }),
            None => self.spend(self.weigh(value)?.saturating_mul(ESCAPED)),
        }
    }

    /// Before a filter or a method makes a value of these, the first of which it belongs to.
    fn call(&self, name: &str, args: &[Value]) -> Result<(), Error> {
        if CHEAP.contains(&name) {
            return Ok(());
        }
        let weights = args.iter().map(|arg| self.weigh(arg)).collect::<Result<Vec<_>, _>>()?;
        let weight = weights.iter().sum::<usize>();
        self.spend(weight)?;
        self.require(weight.saturating_mul(CUT))?;
        let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
        match name {
            "replace" => {
                let count = text(0).matches(text(1)).count();
                self.require(count.saturating_mul(text(2).len()))
            }
            "join" => {
                // The filter belongs to the list, Python's method to the text between its items.
                let is_method = args.len() == 2
                    && Shape::of(&args[0]).is_leaf()
                    && !Shape::of(&args[1]).is_leaf();
                let list = usize::from(is_method && !args[1].is_kwargs());
                let items = args.get(list).and_then(Value::len).unwrap_or(0);
                self.require(items.saturating_mul(weight - weights.get(list).unwrap_or(&0)))
            }
            // Each sum is a value of its own.
            "sum" => {
                let items = args.first().and_then(Value::len).unwrap_or(0);
                self.spend(items.saturating_mul(weight) / NODE)
            }
            // Spaces for each line, or items to fill up with.
            "indent" | "batch" | "slice" | "round" => match largest_number(&args[1..])? {
                count if count > MAX_COUNT => Err(invalid("a number is too large")),
                count => self.require(weight.saturating_mul(count.max(4))),
            },
            "format" => {
                let mut numbers = text(0).split(|c: char| !c.is_ascii_digit());
                // A width may come from an argument.
                let indirect = text(0).contains('*') || nested_field(text(0));
                match indirect || numbers.any(|number| number.len() > 3) {
                    true => Err(invalid("a width is too large")),
                    // Each field has a byte at least, and becomes no more than 999 characters.
                    false => self.require(weight.saturating_mul(1000)),
                }
            }
            _ => Ok(()),
        }
    }

    /// After it has made one.
    fn made(&self, name: &str, value: &Value) -> Result<(), Error> {
        match SHARING.contains(&name) || CHEAP.contains(&name) {
            true => self.spend(NODE),
            false => self.spend(self.weigh(value)?),
        }
    }
}

/// Filters that take as long for a long value as for a short one, or nearly so.
const CHEAP: [&str; 7] = ["length", "count", "default", "d", "first", "last", "attr"];

/// Filters that pick and order what is there; what they make is no larger than what they are given.
const SHARING: [&str; 11] = [
    "min",
    "max",
    "sort",
    "reverse",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "items",
    "dictsort",
    "unique",
];

fn largest_number(args: &[Value]) -> Result<usize, Error> {
    let mut largest = 0;
    for arg in args {
        largest = largest.max(arg.as_usize().unwrap_or(0));
        if arg.is_kwargs() {
            for key in arg.try_iter()?.checked() {
                largest = largest.max(arg.get_item(&key?)?.as_usize().unwrap_or(0));
            }
        }
    }
    Ok(largest)
}

/// Whether a field of a format holds another, as in `{:{}}`.
fn nested_field(format: &str) -> bool {
    let format = format.replace("{{", "");
    format.split('{').skip(1).any(|field| !field.contains('}'))
}

fn exhausted() -> Error {
    Error::new(ErrorKind::OutOfFuel, "the template makes too much data")
}

fn too_deep() -> Error {
    invalid("lists and maps are nested too deeply")
}

fn invalid(problem: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// What a value is made of.
enum Shape {
    /// Texts, numbers, nothing.
    Leaf,
    List,
    Map,
    Namespace,
    /// Loops, macros, functions.
    Opaque,
}

impl Shape {
    fn of(value: &Value) -> Self {
        let type_name = type_name(value);
        match value.kind() {
            _ if value.is_kwargs() => Self::Map,
            ValueKind::Seq | ValueKind::Iterable => Self::List,
            ValueKind::Map if type_name.ends_with("Namespace") => Self::Namespace,
            ValueKind::Map if type_name.contains("Map") || type_name.ends_with("MergeDict") => {
                Self::Map
            }
            ValueKind::Map | ValueKind::Plain | ValueKind::Invalid => Self::Opaque,
            _ => Self::Leaf,
        }
    }

    fn is_leaf(&self) -> bool {
        matches!(self, Self::Leaf)
    }
}

/// Whether a list computes its items from another one, as slices, sums and filters do.
fn is_lazy(list: &Value) -> bool {
    let name = type_name(list);
    !(name.contains("Vec<") || name.contains("Tuple"))
}

/// Rust's name for an object, the only thing that tells minijinja's own kinds apart.
fn type_name(value: &Value) -> &'static str {
    value.as_object().map_or("", |object| object.type_name())
}

/// Adds the checks to an environment whose functions and filters are complete.
pub(super) fn add(environment: &mut Environment<'static>, budget: &Arc<Budget>) {
    for (name, keep) in [(STORE, false), (KEEP, true)] {
        let budget = budget.clone();
        environment.add_filter(name, move |value: Value| budget.store(&value, keep));
    }
    for name in [ADD, CONCAT, MUL, COMPARE] {
        let budget = budget.clone();
        let check = move |left: Value, right: Value| budget.operands(name, left, right);
        environment.add_function(name, check);
    }
    let formatter = budget.clone();
    environment.set_formatter(move |output, state, value| {
        formatter.write(value, !matches!(state.auto_escape(), minijinja::AutoEscape::None))?;
        escape_formatter(output, state, value)
    });
    let methods = budget.clone();
    environment.set_unknown_method_callback(move |state, value, name, args| {
        let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
        methods.call(name, &all)?;
        let result =
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)?;
        methods.made(name, &result)?;
        Ok(result)
    });
    let namespaces = budget.clone();
    let namespace = Value::from_function(functions::namespace);
    let checked = move |state: &mut State, values: Option<ValueOrKwargs>| match values {
        Some(values) => namespace.call(state, &[namespaces.attributes(&values)?]),
        None => namespace.call(state, &[]),
    };
    environment.add_function("namespace", checked);
    for (name, filter) in filters() {
        let budget = budget.clone();
        let checked = move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            budget.call(name, &args)?;
            let result = filter.call(state, &args)?;
            budget.made(name, &result)?;
            Ok::<_, Error>(result)
        };
        environment.add_filter(name, checked);
    }
    environment.remove_global("debug");
}

/// All filters of minijinja, and Python's `tojson`.
fn filters() -> Vec<(&'static str, Value)> {
    macro_rules! table {
        ($($name:literal: $filter:expr,)*) => { vec![$(($name, Value::from_function($filter)),)*] };
    }
    table! {
        "safe": filters::safe, "escape": filters::escape, "e": filters::escape,
        "lower": filters::lower, "upper": filters::upper, "title": filters::title,
        "capitalize": filters::capitalize, "replace": filters::replace, "length": filters::length,
        "count": filters::length, "dictsort": filters::dictsort, "items": filters::items,
        "reverse": filters::reverse, "trim": filters::trim, "join": filters::join,
        "split": filters::split, "lines": filters::lines, "default": filters::default,
        "d": filters::default, "round": filters::round, "abs": filters::abs, "int": filters::int,
        "float": filters::float, "attr": filters::attr, "first": filters::first,
        "last": filters::last, "min": filters::min, "max": filters::max, "sort": filters::sort,
        "list": filters::list, "string": filters::string, "bool": filters::bool,
        "batch": filters::batch, "slice": filters::slice, "sum": filters::sum,
        "indent": filters::indent, "select": filters::select, "reject": filters::reject,
        "selectattr": filters::selectattr, "rejectattr": filters::rejectattr, "map": filters::map,
        "groupby": filters::groupby, "unique": filters::unique, "chain": filters::chain,
        "zip": filters::zip, "pprint": filters::pprint, "format": filters::format,
        "tojson": chat_functions::to_json,
    }
}
