//! The arrows between packages.

use super::list::{Arrows, Claims};
use crate::workspace::Workspace;

/// All that is wrong, a line each.
pub(crate) fn check(claims: &Claims, workspace: &Workspace) -> Vec<String> {
    let mut wrong = Vec::new();
    let listed = |name: &str| claims.packages.iter().position(|(listed, _)| listed == name);
    for package in workspace.packages.iter().filter(|package| !package.is_example()) {
        let name = &package.name;
        let Some(at) = listed(name) else {
            wrong.push(format!("no line of the packages names {name}"));
            continue;
        };
        let to = |in_tests: bool| {
            let mut to: Vec<String> = workspace.inner_dependencies(package, in_tests);
            to.sort();
            to
        };
        let actual = Arrows { to: to(false), in_tests: to(true) };
        let claimed = &claims.packages[at].1;
        if actual != *claimed {
            wrong.push(format!("{name} is claimed to have {claimed}, and has {actual}"));
        }
        for to in &actual.to {
            if listed(to).is_some_and(|to| to > at) {
                wrong.push(format!("{name} uses {to}, which is on a later line"));
            }
        }
    }
    for (name, _) in &claims.packages {
        if !workspace.packages.iter().any(|package| package.name == *name) {
            wrong.push(format!("the packages name {name}, and there is no such package"));
        }
    }
    wrong
}
