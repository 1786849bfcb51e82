//! Address spaces as text: one column a granule.
//!
//! `.` is a hole, `#` is reserved, a letter is mapped (see [`part`](super::part)). A VMA ends where
//! the letters do not go on, and at `|`. What stands in parentheses is excluded.

use std::ops::Range;

use super::op::{Op, Paint, Side};
use super::part::Part;
use super::subject::{Map, Subject};

/// Where column 0 is, and how wide a column is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) base: usize,
    pub(crate) granule: usize,
}

impl Place {
    pub(crate) fn addr(self, column: usize) -> usize {
        self.base + column * self.granule
    }

    pub(crate) fn range(self, columns: &Range<usize>) -> Range<usize> {
        self.addr(columns.start)..self.addr(columns.end)
    }
}

/// How many columns `picture` has.
pub(crate) fn columns(picture: &str) -> usize {
    picture.bytes().filter(|byte| !b"|()".contains(byte)).count()
}

/// Makes what `picture` shows.
pub(crate) fn make<S: Subject>(side: &mut Side<S>, picture: &str, place: Place) {
    let mut excluded = Vec::new();
    let mut open = 0;
    let mut column = 0;
    let mut chars = picture.chars().peekable();
    while let Some(first) = chars.next() {
        let start = column;
        match first {
            '(' => open = column,
            ')' => excluded.push(open..column),
            '|' => {}
            '.' => column += 1,
            letter => {
                let mut last = letter;
                column += 1;
                while let Some(next) = chars.next_if(|&next| goes_on(last, next)) {
                    last = next;
                    column += 1;
                }
                let range = place.range(&(start..column));
                side.must(&match letter {
                    '#' => Op::Reserve(range),
                    letter => Op::Insert(range, Paint::Letter(letter)),
                });
            }
        }
    }
    for columns in excluded {
        side.must(&Op::Exclude(place.range(&columns)));
    }
}

/// Whether two letters side by side are one VMA.
fn goes_on(left: char, right: char) -> bool {
    match left {
        'a'..='z' | '0'..='9' => right as u32 == left as u32 + 1,
        _ => left == right,
    }
}

/// The picture of `map`, with holes everywhere else.
pub(crate) fn draw(map: &Map, columns: usize, place: Place) -> String {
    let mut picture = String::new();
    let mut column = 0;
    for (range, part) in map {
        while place.addr(column) < range.start {
            picture.push('.');
            column += 1;
        }
        let len = (range.end - range.start) / place.granule;
        let letters: String = (0..len).map(|n| part.letter(n)).collect();
        if picture.chars().last().is_some_and(|last| goes_on(last, part.letter(0))) {
            picture.push('|');
        }
        picture += &letters;
        column += len;
    }
    picture += &".".repeat(columns - column);
    picture
}

/// The picture of what is in `columns` columns of the space. Exclusions do not show.
pub(crate) fn look<S: Subject>(side: &mut Side<S>, columns: usize, place: Place) -> String {
    let window = place.range(&(0..columns));
    let inside =
        |(range, _): &(Range<usize>, Part)| range.start < window.end && window.start < range.end;
    let map: Map = side.subject.map().into_iter().filter(inside).collect();
    let mut column = 0;
    let mut picture = String::new();
    for letter in draw(&map, columns, place).chars() {
        let reserved = letter == '.' && side.subject.is_reserved(place.addr(column));
        picture.push(if reserved { '#' } else { letter });
        column += usize::from(letter != '|');
    }
    picture
}

/// The picture as [`look`] shows it: neither exclusions nor where reservations touch can be seen.
pub(crate) fn plain(picture: &str) -> String {
    picture.replace(['(', ')'], "").replace("#|#", "##")
}
