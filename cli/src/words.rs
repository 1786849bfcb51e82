//! Numbers as people write them.

/// Returns a number of things, as in "1 page" and "2 pages".
pub(crate) fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Returns a time, given in ns, with about three digits and its unit.
pub(crate) fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        1e9.. => (ns / 1e9, "s"),
        1e6.. => (ns / 1e6, "ms"),
        1e3.. => (ns / 1e3, "µs"),
        _ => (ns, "ns"),
    };
    let digits = match value {
        _ if unit == "ns" => 0,
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// Rounds to a tenth.
pub(crate) fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|n| count(n, "page")), ["0 pages", "1 page", "2 pages"]);
    }

    #[test]
    fn times_have_units() {
        let times = [0.0, 42.4, 999.0, 1234.0, 56_789.0, 1e6, 1.5e8, 2e9].map(time);
        let words =
            ["0 ns", "42 ns", "999 ns", "1.23 µs", "56.8 µs", "1.00 ms", "150 ms", "2.00 s"];
        assert_eq!(times, words);
    }
}
