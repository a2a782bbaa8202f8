//! Rules for documents: those that must be there, and links that must lead somewhere. Pure; the caller
//! says what exists.

use super::{Problem, SourceFile};

/// Files without which the project is not complete.
const REQUIRED: [&str; 10] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "deny.toml",
    "docs/design/setup.md",
    "docs/design/testing.md",
    "ebpf/LICENSE",
];

/// Required files that are not there.
pub(super) fn missing(exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    let lacking = REQUIRED.iter().filter(|path| !exists(path));
    lacking
        .map(|path| Problem {
            path: (*path).to_owned(),
            line: 1,
            rule: "this file must exist".to_owned(),
        })
        .collect()
}

/// Links of a Markdown file into the repository that lead nowhere.
pub(super) fn check(file: &SourceFile, exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut problems = Vec::new();
    let mut in_code = false;
    for (index, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in links(line) {
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            if !elsewhere && !exists(&resolve(folder, path)) {
                let rule = format!("the link `{target}` leads nowhere");
                problems.push(Problem::new(file, index + 1, rule));
            }
        }
    }
    problems
}

/// Targets of the links in a line: `[text](target)`.
fn links(line: &str) -> Vec<&str> {
    let pieces = line.split("](").skip(1);
    pieces
        .filter_map(|rest| {
            Some(
                rest.split_once(')')?
                    .0
                    .split(' ')
                    .next()
                    .unwrap_or_default(),
            )
        })
        .collect()
}

/// A link as a path from the root.
fn resolve(folder: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return absolute.to_owned();
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<Problem> {
        let file = SourceFile {
            path: "docs/design/a.md".to_owned(),
            text: text.to_owned(),
        };
        check(&file, |path| {
            path == "README.md" || path == "docs/design/b.md"
        })
    }

    #[test]
    fn links_are_resolved_from_the_documents_folder() {
        assert_eq!(
            problems("[a](../../README.md) [b](b.md#part) [c](/README.md)\n"),
            []
        );
        assert_eq!(problems("[a](../README.md)\n").len(), 1);
    }

    #[test]
    fn other_sites_anchors_and_code_are_not_looked_up() {
        assert_eq!(
            problems("[a](https://x/y) [b](#part)\n```\n[c](nowhere)\n```\n"),
            []
        );
    }

    #[test]
    fn a_missing_document_is_named() {
        assert_eq!(missing(|path| path != "README.md")[0].path, "README.md");
        assert_eq!(missing(|_| true), []);
    }
}
