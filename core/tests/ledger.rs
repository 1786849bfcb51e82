//! The ledger is whole: each edge names its other end, and that end names it back.

use pervma::ledger::{EDGES, Kind, Ordering};

#[test]
fn both_ends_of_every_edge_name_each_other() {
    for edge in EDGES {
        for pair in edge.pairs {
            let partner = EDGES.iter().find(|other| other.name == *pair);
            let partner = partner.unwrap_or_else(|| panic!("{} names {pair}", edge.name));
            assert!(partner.pairs.contains(&edge.name), "{pair} does not name {}", edge.name);
            let acquires = |ordering| matches!(ordering, Ordering::Acquire);
            assert_ne!(
                acquires(edge.ordering),
                acquires(partner.ordering),
                "{} and {pair} are the same end",
                edge.name
            );
        }
    }
}

#[test]
fn names_are_unique_and_no_ordering_is_stronger_than_a_release_or_an_acquire() {
    for (at, edge) in EDGES.iter().enumerate() {
        assert!(EDGES[..at].iter().all(|other| other.name != edge.name));
        let fits = match edge.kind {
            Kind::Load => edge.ordering == Ordering::Acquire,
            Kind::Store => edge.ordering == Ordering::Release,
            Kind::Rmw | Kind::Fence => {
                matches!(edge.ordering, Ordering::Acquire | Ordering::Release)
            }
        };
        assert!(fits, "{}", edge.name);
    }
}
