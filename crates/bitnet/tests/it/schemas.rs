//! Random JSON schemas, and whether a value is valid by one. Knows the keywords that it makes and no others.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// A schema whose values have bounded sizes, so many levels deep at most.
    pub fn schema(&mut self, depth: u64) -> Value {
        let kinds = if depth == 0 { 7 } else { 11 };
        match self.below(kinds) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "null"}),
            2 => {
                let low = self.below(2000) as i64 - 1000;
                json!({"type": "integer", "minimum": low, "maximum": low + self.below(500) as i64})
            }
            3 => {
                json!({"type": "number", "exclusiveMinimum": 0, "maximum": 10, "multipleOf": 0.25})
            }
            4 => {
                let least = self.below(5);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(12)})
            }
            5 => match self.below(3) {
                0 => json!({"enum": ["red", "blue \"x\"", 5, null, {"a": [true]}]}),
                1 => json!({"const": ["ä", -1.5]}),
                _ => json!({"type": "string", "enum": ["up", "down"]}),
            },
            6 => json!({"type": "string", "pattern": "^[A-Z][a-z]{1,5}-[0-9]{2}$"}),
            7 => {
                let least = self.below(3);
                let (items, most) = (self.schema(depth - 1), least + self.below(3));
                json!({"type": "array", "items": items, "minItems": least, "maxItems": most})
            }
            8 => {
                let any: Vec<Value> = (0..=self.below(3)).map(|_| self.schema(depth - 1)).collect();
                json!({"anyOf": any})
            }
            9 => {
                let target = self.schema(depth - 1);
                json!({
                    "$defs": {"part": target},
                    "type": "array",
                    "prefixItems": [{"type": "boolean"}, {"type": "integer", "minimum": 7, "maximum": 9}],
                    "items": false,
                    "minItems": 2
                })
            }
            _ => self.object(depth),
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let names = ["name", "age", "ok \"?\"", "größe", "list"];
        let mut properties = Map::new();
        let mut required = Vec::new();
        for name in &names[..1 + self.below(4) as usize] {
            properties.insert((*name).into(), self.schema(depth - 1));
            if self.below(3) > 0 {
                required.push(*name);
            }
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }
}

/// Whether `value` is valid by `schema`, one of those made above.
pub fn is_valid(value: &Value, schema: &Value) -> bool {
    let Value::Object(keywords) = schema else { return *schema == json!(true) };
    keywords.iter().all(|(keyword, by)| holds(value, keyword, by, schema))
}

fn holds(value: &Value, keyword: &str, by: &Value, schema: &Value) -> bool {
    let number = value.as_f64();
    let length = value.as_str().map(|text| text.chars().count() as u64);
    let (items, object) = (value.as_array(), value.as_object());
    let bound = by.as_f64();
    match keyword {
        "type" => match by.as_str().unwrap() {
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "integer" => number.is_some_and(|x| x.fract() == 0.0),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => unreachable!("{other}"),
        },
        "minimum" => number >= bound,
        "maximum" => number <= bound,
        "exclusiveMinimum" => number > bound,
        "multipleOf" => (number.unwrap() / bound.unwrap()).fract() == 0.0,
        "minLength" => length >= by.as_u64(),
        "maxLength" => length <= by.as_u64(),
        "pattern" => is_label(value.as_str().unwrap()),
        "enum" => by.as_array().unwrap().contains(value),
        "const" => by == value,
        "anyOf" => by.as_array().unwrap().iter().any(|any| is_valid(value, any)),
        "minItems" => items.map(|items| items.len() as u64) >= by.as_u64(),
        "maxItems" => items.map(|items| items.len() as u64) <= by.as_u64(),
        "prefixItems" => {
            by.as_array().unwrap().iter().zip(items.unwrap()).all(|(by, item)| is_valid(item, by))
        }
        "items" => {
            let before = schema["prefixItems"].as_array().map_or(0, Vec::len);
            items.unwrap().iter().skip(before).all(|item| is_valid(item, by))
        }
        "properties" => object
            .unwrap()
            .iter()
            .all(|(name, value)| by.get(name).is_none_or(|by| is_valid(value, by))),
        "required" => {
            by.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some())
        }
        "additionalProperties" => {
            object.unwrap().keys().all(|name| schema["properties"].get(name).is_some())
        }
        "$defs" => true,
        other => unreachable!("{other}"),
    }
}

/// `^[A-Z][a-z]{1,5}-[0-9]{2}$`
fn is_label(text: &str) -> bool {
    let Some((word, digits)) = text.split_once('-') else { return false };
    let lower = word.get(1..).unwrap_or_default();
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && (1..=5).contains(&lower.len())
        && lower.chars().all(|c| c.is_ascii_lowercase())
        && digits.len() == 2
        && digits.chars().all(|c| c.is_ascii_digit())
}
