//! The form that an answer is to have: `response_format`, `regex` and `lark`.

use bitnet::ResponseFormat;
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::Fields;

/// Bytes of the name of a schema, which is for people.
const NAME: usize = 64;

/// Takes the fields, of which one at most may ask for something.
pub fn read(fields: &mut Fields) -> Result<ResponseFormat, ApiError> {
    let asked = [
        ("response_format", response_format(fields)?),
        ("regex", fields.string("regex")?.filter(|s| !s.is_empty()).map(ResponseFormat::Regex)),
        ("lark", fields.string("lark")?.filter(|s| !s.is_empty()).map(ResponseFormat::Lark)),
    ];
    let mut asked = asked.into_iter().filter_map(|(name, format)| Some((name, format?)));
    match (asked.next(), asked.next()) {
        (None, _) => Ok(ResponseFormat::Text),
        (Some((_, format)), None) => Ok(format),
        (Some((first, _)), Some((second, _))) => {
            let message = format!("'{first}' and '{second}' both say what form the answer has.");
            Err(ApiError::value(second, message))
        }
    }
}

/// The field that a format comes in, by its name in the library.
pub fn field(format: &str) -> &'static str {
    match format {
        "regular expression" => "regex",
        "Lark grammar" => "lark",
        _ => "response_format",
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let path = format.path("type");
    let found = match format.string("type")?.as_deref() {
        None => return Err(ApiError::missing(path)),
        Some("text") => None,
        Some("json_object") => Some(ResponseFormat::JsonObject),
        Some("json_schema") => Some(json_schema(&mut format)?),
        Some(_) => {
            let message =
                format!("Invalid '{path}': it should be text, json_object or json_schema.");
            return Err(ApiError::value(path, message));
        }
    };
    format.end()?;
    Ok(found)
}

/// A schema with its name. Whether it is to be kept to strictly makes no difference: it is.
fn json_schema(format: &mut Fields) -> Result<ResponseFormat, ApiError> {
    let path = format.path("json_schema");
    let mut about = format.object("json_schema")?.ok_or_else(|| ApiError::missing(path))?;
    about.short_string("name", NAME)?;
    about.string("description")?;
    about.bool("strict")?;
    let schema = match about.take("schema") {
        None => ResponseFormat::JsonObject,
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            ResponseFormat::JsonSchema(schema.to_string())
        }
        Some(_) => {
            let path = about.path("schema");
            return Err(ApiError::field_type(path, "a JSON schema", "something else"));
        }
    };
    about.end()?;
    Ok(schema)
}
