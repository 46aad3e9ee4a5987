//! `--format TEMPLATE`: the part of Go's templates that docker's users write, fields and `json`.

use serde_json::Value;

/// A template that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid template {0:?}: {{{{.Field}}}}, {{{{.Field.Field}}}} and {{{{json .Field}}}} are known"
)]
pub(crate) struct TemplateError(String);

/// Text with fields in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let refused = || TemplateError(text.into());
        let mut parts = Vec::new();
        // As docker: what was typed as \t and \n is meant so.
        let plain = |text: &str| Part::Text(text.replace("\\t", "\t").replace("\\n", "\n"));
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (inside, after) = behind.split_once("}}").ok_or_else(refused)?;
            parts.push(plain(before));
            parts.push(field(inside.trim()).ok_or_else(refused)?);
            rest = after;
        }
        parts.push(plain(rest));
        Ok(Self(parts))
    }

    /// The text for this value.
    pub(crate) fn render(&self, value: &Value) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, json } => {
                let found = path
                    .iter()
                    .try_fold(value, |value, name| value.get(name.as_str()));
                match found {
                    Some(found) if *json => found.to_string(),
                    Some(Value::String(text)) => text.clone(),
                    Some(found) => found.to_string(),
                    None => "<no value>".into(),
                }
            }
        };
        self.0.iter().map(part).collect()
    }
}

fn field(text: &str) -> Option<Part> {
    let (text, json) = match text.strip_prefix("json ") {
        Some(rest) => (rest.trim(), true),
        None => (text, false),
    };
    let path = text.strip_prefix('.')?;
    if path.is_empty() {
        return Some(Part::Field {
            path: Vec::new(),
            json,
        });
    }
    let names: Vec<String> = path.split('.').map(Into::into).collect();
    let is_name = |name: &String| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    names
        .iter()
        .all(is_name)
        .then_some(Part::Field { path: names, json })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> String {
        let value = json!({"Name": "web", "State": {"Pid": 7, "Words": ["a"]}});
        Template::parse(text).unwrap().render(&value)
    }

    #[test]
    fn fields_are_put_in() {
        assert_eq!(render("{{.Name}}\\t{{ .State.Pid }}!"), "web\t7!");
        assert_eq!(
            render("{{json .Name}} {{json .State.Words}}"),
            "\"web\" [\"a\"]"
        );
        assert_eq!(render("{{.Nothing}}"), "<no value>");
        assert_eq!(render("plain"), "plain");
    }

    #[test]
    fn what_is_no_template_of_ours_is_refused() {
        for text in [
            "{{",
            "{{.A",
            "{{Name}}",
            "{{.A..B}}",
            "{{range .A}}",
            "{{}}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
