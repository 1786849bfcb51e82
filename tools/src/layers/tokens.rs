//! Paths in what a macro is given, and in what it expands to: there is no syntax tree of that.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// All paths in `tokens`, without generic arguments, each with its line. `$crate` is `crate`; a
/// path that begins with another variable of a macro is unknown and left out.
pub(crate) fn paths(tokens: TokenStream) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    scan(&tokens.into_iter().collect::<Vec<_>>(), &mut found);
    // `pub(crate)` names nothing, nor does a receiver.
    found.retain(|(path, _): &(Vec<String>, usize)| {
        !path.iter().all(|part| matches!(part.as_str(), "crate" | "self" | "super"))
    });
    found
}

fn scan(tokens: &[TokenTree], found: &mut Vec<(Vec<String>, usize)>) {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Group(group) => {
                scan(&group.stream().into_iter().collect::<Vec<_>>(), found);
                at += 1;
            }
            TokenTree::Ident(_) => at += path(&tokens[at..], &[], found),
            TokenTree::Punct(punct) => {
                let next = |n: usize| tokens.get(at + n);
                match punct.as_char() {
                    '$' if is_ident(next(1), "crate") => at += 1,
                    // A range, as opposed to a field or a method.
                    '.' if is_punct(next(1), '.') => at += 2,
                    // Of a variable, an absolute path, or a lifetime.
                    '$' | '.' | '\'' => at += 1 + skipped(&tokens[at + 1..]),
                    ':' if is_punct(next(1), ':') => at += 2 + skipped(&tokens[at + 2..]),
                    _ => at += 1,
                }
            }
            TokenTree::Literal(_) => at += 1,
        }
    }
}

/// Adds the path, or the tree of paths, that `tokens` begin with; says how long it is.
fn path(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<(Vec<String>, usize)>) -> usize {
    let mut path = prefix.to_vec();
    let Some(TokenTree::Ident(first)) = tokens.first() else { return 1 };
    let line = first.span().start().line;
    let mut at = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let tree = group.stream().into_iter().collect::<Vec<_>>();
                for branch in tree.split(|token| is_punct(Some(token), ',')) {
                    self::path(branch, &path, found);
                }
                return at + 1;
            }
            // Generic arguments, `*`, or a variable: the path is known up to here.
            _ => break,
        }
        at += 1;
        if !(is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')) {
            break;
        }
        at += 2;
    }
    path.retain(|part| part != "self" || prefix.is_empty());
    found.push((path, line));
    at
}

/// How many tokens a path has that does not count.
fn skipped(tokens: &[TokenTree]) -> usize {
    if matches!(tokens.first(), Some(TokenTree::Ident(_))) {
        path(tokens, &[], &mut Vec::new())
    } else {
        0
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_ident(token: Option<&TokenTree>, wanted: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(name)) if name == wanted)
}

/// What stands in the `#[..]` and `#![..]` that `tokens` begin with.
pub(crate) fn leading_attributes(tokens: TokenStream) -> Vec<TokenStream> {
    let mut found = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while tokens.next_if(|token| is_punct(Some(token), '#')).is_some() {
        tokens.next_if(|token| is_punct(Some(token), '!'));
        if let Some(TokenTree::Group(group)) = tokens.next() {
            found.push(group.stream());
        }
    }
    found
}
