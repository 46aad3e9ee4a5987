//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, section 11).

/// One challenge of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `basic` or `bearer`.
    pub scheme: String,
    /// Names in lower case, in the order they came.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Parses the value of one header, which may hold several challenges. What cannot be understood
/// ends the list: the challenges before it stand.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut rest = Cursor(header);
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest.skip(|c| c == ',' || is_space(c));
        let Some(word) = rest.token() else {
            return challenges;
        };
        let before = rest.0;
        rest.skip(is_space);
        // A word with an equals sign continues the challenge before it; any other begins one.
        if let (Some(after), Some(challenge)) = (rest.0.strip_prefix('='), challenges.last_mut()) {
            rest.0 = after;
            rest.skip(is_space);
            let Some(value) = rest.value() else {
                return challenges;
            };
            challenge
                .parameters
                .push((word.to_ascii_lowercase(), value));
            continue;
        }
        rest.0 = before;
        challenges.push(Challenge {
            scheme: word.to_ascii_lowercase(),
            parameters: Vec::new(),
        });
        if !rest.0.is_empty() && !rest.0.starts_with([' ', '\t', ',']) {
            return challenges;
        }
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(skipped);
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.0.find(|c| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or a quoted string in which a backslash takes the next character as it is.
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.0.strip_prefix('"') else {
            return self.token().map(str::to_owned);
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                c => value.push(c),
            }
        }
        None
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        parse_challenges(header)
            .into_iter()
            .map(|challenge| (challenge.scheme, challenge.parameters))
            .collect()
    }

    fn one(scheme: &str, parameters: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        let parameters = parameters
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        (scheme.into(), parameters)
    }

    #[test]
    fn what_registries_send_is_understood() {
        assert_eq!(
            parsed(
                r#"Bearer realm="https://auth.example/token",service="r",scope="a:b:pull,push""#
            ),
            [one(
                "bearer",
                &[
                    ("realm", "https://auth.example/token"),
                    ("service", "r"),
                    ("scope", "a:b:pull,push"),
                ]
            )]
        );
        assert_eq!(
            parsed("basic Realm = \"a \\\"b\\\"\" , charset=UTF-8"),
            [one("basic", &[("realm", "a \"b\""), ("charset", "UTF-8")])]
        );
    }

    #[test]
    fn several_challenges_may_share_a_header() {
        assert_eq!(
            parsed(r#"Negotiate, Basic realm="x", Bearer realm="y",service=z"#),
            [
                one("negotiate", &[]),
                one("basic", &[("realm", "x")]),
                one("bearer", &[("realm", "y"), ("service", "z")]),
            ]
        );
    }

    #[test]
    fn nonsense_ends_the_list_without_harm() {
        assert_eq!(parsed(""), []);
        assert_eq!(parsed(",,, ,"), []);
        assert_eq!(parsed("=x"), []);
        assert_eq!(parsed("Basic realm=\"open"), [one("basic", &[])]);
        assert_eq!(parsed("Basic realm=\"open\\"), [one("basic", &[])]);
        assert_eq!(parsed("Basic realm="), [one("basic", &[])]);
        assert_eq!(parsed("Basic é"), [one("basic", &[])]);
        assert_eq!(parsed("é"), []);
    }
}
