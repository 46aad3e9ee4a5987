//! What a token server answers.

use serde::Deserialize;

/// The longest token that is sent back in a header.
const TOKEN_MAX: usize = 64 << 10;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    /// What OAuth 2 calls it.
    access_token: Option<String>,
}

/// Why an answer holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is no JSON object of the kind.
    #[error("it is not the JSON that was expected")]
    Json(#[source] serde_json::Error),
    /// It has neither `token` nor `access_token`.
    #[error("there is no token in it")]
    Missing,
    /// A token that no header can carry.
    #[error("the token is too long or has characters that a token cannot have")]
    Characters,
}

/// Takes the bearer token from the answer of a token server. It has visible ASCII characters only.
pub fn parse_token(answer: &[u8]) -> Result<String, TokenError> {
    let answer: Answer = serde_json::from_slice(answer).map_err(TokenError::Json)?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or(TokenError::Missing)?;
    if token.len() > TOKEN_MAX || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(TokenError::Characters);
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_the_token_are_known() {
        assert_eq!(
            parse_token(br#"{"token": "a.b", "expires_in": 60}"#).unwrap(),
            "a.b"
        );
        assert_eq!(parse_token(br#"{"access_token": "c"}"#).unwrap(), "c");
        assert_eq!(
            parse_token(br#"{"token": "", "access_token": "c"}"#).unwrap(),
            "c"
        );
    }

    #[test]
    fn an_answer_that_would_break_the_request_is_refused() {
        type Expected = fn(&TokenError) -> bool;
        let cases: [(&[u8], Expected); 4] = [
            (b"<html>", |err| matches!(err, TokenError::Json(_))),
            (b"{}", |err| matches!(err, TokenError::Missing)),
            (br#"{"token": "a\r\nHost: b"}"#, |err| {
                matches!(err, TokenError::Characters)
            }),
            (br#"{"token": 7}"#, |err| matches!(err, TokenError::Json(_))),
        ];
        for (answer, expected) in cases {
            let err = parse_token(answer).unwrap_err();
            assert!(expected(&err), "{err:?}");
        }
    }
}
