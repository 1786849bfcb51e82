//! Links between documents. A link that leads nowhere is noticed by a reader only.

use std::collections::{BTreeMap, BTreeSet};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// All files of the repository by their paths in it, with the text of those that end in `.md`.
type Files = BTreeMap<String, String>;

/// The folder of the book. Readers of the built one have nothing else.
const BOOK: &str = "docs/guide/src/";

/// The links in documents that lead to no file or no heading, or out of the book; a line each.
fn dead(files: &Files) -> Vec<String> {
    let mut dead = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| is_document(path)) {
        for (line, link) in links(text) {
            if let Err(reason) = follow(files, path, &link) {
                dead.push(format!("{path}:{line}: {link}: {reason}"));
            }
        }
    }
    dead
}

fn is_document(path: &str) -> bool {
    path.ends_with(".md")
}

fn parse(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// The links and images in a document, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let links = parse(text).into_offset_iter().filter_map(|(event, place)| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some((text[..place.start].matches('\n').count() + 1, dest_url.into_string()))
        }
        _ => None,
    });
    links.collect()
}

/// Whether a link in the document `from` leads somewhere. What is outside of the repository is not
/// looked at.
fn follow(files: &Files, from: &str, link: &str) -> Result<(), &'static str> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
    let path = if file.is_empty() { from.to_owned() } else { resolve(from, file)? };
    let folder = format!("{path}/");
    let is_there =
        path.is_empty() || files.keys().any(|file| *file == path || file.starts_with(&folder));
    if !is_there {
        return Err("no such file");
    }
    if from.starts_with(BOOK) && !path.starts_with(BOOK) {
        return Err("not in the book");
    }
    let has_heading = || files.get(&path).is_some_and(|text| anchors(text).contains(fragment));
    if is_document(&path) && !fragment.is_empty() && !has_heading() {
        return Err("no such heading");
    }
    Ok(())
}

/// The path in the repository of what is `relative` to the folder of `from`.
fn resolve(from: &str, relative: &str) -> Result<String, &'static str> {
    if relative.starts_with('/') {
        return Err("not relative");
    }
    let mut path: Vec<_> = from.split('/').collect();
    path.pop();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop().ok_or("out of the repository")?;
            }
            name => path.push(name),
        }
    }
    Ok(path.join("/"))
}

/// What links to the headings of a document are called.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut heading) = (BTreeSet::new(), None);
    for event in parse(text) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(part) | Event::Code(part), Some(heading)) => heading.push_str(&part),
            (Event::End(TagEnd::Heading(_)), _) => {
                let name = anchor(&heading.take().unwrap_or_default());
                let mut names = (1..).map(|again| format!("{name}-{again}"));
                let mut free = name.clone();
                while !anchors.insert(free.clone()) {
                    free = names.next().unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    anchors
}

/// The name of a heading: small letters, and no punctuation but hyphens.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::{Files, dead, is_document};

    fn files<const N: usize>(files: [(&str, &str); N]) -> Files {
        files.map(|(path, text)| (path.to_owned(), text.to_owned())).into()
    }

    #[test]
    fn no_link_of_the_repository_is_dead() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listed = match Command::new("git").args(list).current_dir(&root).output() {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
            refused => {
                println!("NOT RUN: git lists no files: {refused:?}");
                return;
            }
        };
        // One that was removed is listed until that is committed.
        let paths = listed.split_terminator('\0').filter(|path| root.join(path).exists());
        let read = |path: &str| match is_document(path) {
            true => std::fs::read_to_string(root.join(path)).unwrap(),
            false => String::new(),
        };
        let files: Files = paths.map(|path| (path.to_owned(), read(path))).collect();
        for must in ["README.md", "core/README.md", "docs/guide/src/SUMMARY.md"] {
            assert!(files.contains_key(must), "{must} is not among {} files", files.len());
        }
        assert_eq!(dead(&files), [""; 0]);
    }

    #[test]
    fn dead_links_are_told() {
        let readme = "# A\n\n[code](src/main.rs) [gone](src/gone.rs)\n\n| a |\n|---|\n| ![b](b.svg) |\n\
                      [out](../x) [root](/src) [fine](docs) [self](#a) [none](#b)\n\n\
                      [by reference][c]\n\n[c]: docs/c.md#nothing\n\
                      `[code](x)` <https://example.org/x> [web](https://example.org/y)\n";
        let found =
            dead(&files([("README.md", readme), ("docs/c.md", "# C"), ("src/main.rs", "")]));
        let expected = [
            "README.md:3: src/gone.rs: no such file",
            "README.md:7: b.svg: no such file",
            "README.md:8: ../x: out of the repository",
            "README.md:8: /src: not relative",
            "README.md:8: #b: no such heading",
            "README.md:10: docs/c.md#nothing: no such heading",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn headings_are_found_by_name() {
        let there = "# Where do I look for …\n\n## `map`, and its *layers*\n\n## Same\n\n## Same\n\n\
                     ```\n# no heading\n```\n";
        let dead = |fragment: &str| {
            let link = format!("[x](./c.md{fragment})");
            dead(&files([("a/b.md", &link), ("a/c.md", there)]))
        };
        for good in ["", "#where-do-i-look-for-", "#map-and-its-layers", "#same", "#same-1"] {
            assert_eq!(dead(good), [""; 0]);
        }
        for bad in ["#same-2", "#no-heading", "#Same", "#map"] {
            assert_eq!(dead(bad), [format!("a/b.md:1: ./c.md{bad}: no such heading")]);
        }
    }

    #[test]
    fn the_book_links_to_itself_only() {
        let chapter = "[next](next.md) [top](../../../README.md)";
        let book = [("docs/guide/src/a.md", chapter), ("docs/guide/src/next.md", "")];
        let found = dead(&files([book[0], book[1], ("README.md", "[book](docs/guide/src/a.md)")]));
        assert_eq!(found, ["docs/guide/src/a.md:1: ../../../README.md: not in the book"]);
    }
}
