//! The messages of a conversation, as OpenAI's API writes them.

use bitnet::{Message, Role};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{self, Fields};

/// What several texts of one message are joined with.
const BETWEEN: &str = "\n";

/// The conversation in the field `messages`, if there is one.
pub fn read(fields: &mut Fields) -> Result<Option<Vec<Message>>, ApiError> {
    let Some(messages) = fields.array("messages")? else { return Ok(None) };
    if messages.is_empty() {
        let message = "Invalid 'messages': an empty array; there should be at least one message.";
        return Err(ApiError::value("messages", message));
    }
    let one = |(index, value)| message(value, &format!("messages[{index}]"));
    messages.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
}

fn message(value: Value, path: &str) -> Result<Message, ApiError> {
    let mut fields = Fields::at(value, path)?;
    let name = fields.string("role")?.ok_or_else(|| ApiError::missing(fields.path("role")))?;
    let role = name.parse::<Role>().map_err(|_| {
        let path = fields.path("role");
        let known = "system, developer, user, assistant and tool";
        ApiError::value(&path, format!("Invalid '{path}': it should be one of {known}."))
    })?;
    let content = content(&mut fields)?;
    if role == Role::Tool {
        fields.string("tool_call_id")?; // which call this is the result of: the order says it to the template
    }
    for (name, why) in [
        ("name", "chat templates have no names"),
        ("tool_calls", "this server does not call tools"),
        ("function_call", "this server does not call tools"),
        ("audio", "the model reads and writes text alone"),
        ("refusal", "the model never refuses in a field of its own"),
        ("reasoning_content", "the model does not think before it answers"),
    ] {
        match fields.take(name) {
            None => {}
            Some(Value::Array(values)) if values.is_empty() => {}
            Some(_) => return Err(ApiError::unsupported(fields.path(name), why)),
        }
    }
    fields.end()?;
    Ok(Message { role, content })
}

/// A text, or parts that are texts.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    match fields.take("content") {
        None => Err(ApiError::missing(path)),
        Some(Value::Array(parts)) => {
            let part = |(index, value)| part(value, &format!("{path}[{index}]"));
            let texts: Result<Vec<String>, _> = parts.into_iter().enumerate().map(part).collect();
            Ok(texts?.join(BETWEEN))
        }
        Some(value @ Value::String(_)) => fields::string(value, &path),
        Some(_) => {
            let message =
                format!("Invalid type for '{path}': expected a string or an array of parts.");
            Err(ApiError::value(path, message))
        }
    }
}

fn part(value: Value, path: &str) -> Result<String, ApiError> {
    let mut fields = Fields::at(value, path)?;
    let kind = fields.string("type")?.ok_or_else(|| ApiError::missing(fields.path("type")))?;
    if kind != "text" {
        let why = "the model reads and writes text alone";
        return Err(ApiError::unsupported(fields.path("type"), why));
    }
    let text = fields.string("text")?.ok_or_else(|| ApiError::missing(fields.path("text")))?;
    fields.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(value: Value) -> Result<Option<Vec<Message>>, ApiError> {
        read(&mut Fields::body(json!({ "messages": value })).unwrap())
    }

    #[track_caller]
    fn check(value: Value, param: &str, code: &str) {
        let error: Value = serde_json::from_str(&messages(value).unwrap_err().object()).unwrap();
        let (found, what) = (&error["error"]["param"], &error["error"]["code"]);
        assert_eq!((found.as_str(), what.as_str()), (Some(param), Some(code)));
    }

    #[test]
    fn contents_are_texts_or_parts() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let found = messages(json!([
            {"role": "developer", "content": "x"},
            {"role": "user", "content": parts, "name": null},
        ]));
        let expected = [Message::new(Role::System, "x"), Message::new(Role::User, "a\nb")];
        assert_eq!(found.unwrap().unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let user = |content: Value| json!({"role": "user", "content": content});
        check(json!([]), "messages", "invalid_value");
        check(json!(["hi"]), "messages[0]", "invalid_type");
        check(
            json!([user(json!("a")), {"content": "b"}]),
            "messages[1].role",
            "missing_required_parameter",
        );
        check(json!([{"role": "boss", "content": "b"}]), "messages[0].role", "invalid_value");
        check(json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter");
        check(json!([user(json!(5))]), "messages[0].content", "invalid_value");
        check(
            json!([user(json!([{"type": "image_url", "image_url": {}}]))]),
            "messages[0].content[0].type",
            "unsupported_parameter",
        );
        check(
            json!([user(json!([{"type": "text"}]))]),
            "messages[0].content[0].text",
            "missing_required_parameter",
        );
        check(
            json!([{"role": "user", "content": "a", "mood": 1}]),
            "messages[0].mood",
            "unknown_parameter",
        );
        check(
            json!([{"role": "user", "content": "a", "name": "Bob"}]),
            "messages[0].name",
            "unsupported_parameter",
        );
    }
}
