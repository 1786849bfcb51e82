//! `mirror --svg`: the address spaces over time.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::ops::Range;
use std::path::Path;

use pervma_differ::mirror::{Kind, Record};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::Error;

/// The size of one address space, in pixels.
const PANEL: (u32, u32) = (1100, 420);
/// Address spaces that are drawn: those with the most calls.
const MOST: usize = 6;
/// Threads that the legend names.
const MOST_NAMED: usize = 6;
/// Free ranges of at least so many bytes are drawn as if they had that many.
const GAP: usize = 1 << 20;
/// The first colour of calls of further threads, which no kind of mappings has.
const FIRST_COLOR: usize = 9;
/// The height of a page and that of each doubling, in the picture's own unit.
const UNIT: f64 = 1.0;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the mappings, the calls and the merges.
pub(crate) fn draw(record: &Record, file: &Path) -> Result<(), Error> {
    draw_into(record, file)
        .map_err(|error| Error::Picture { file: file.to_owned(), reason: error.to_string() })
}

fn draw_into(record: &Record, file: &Path) -> Result<(), Box<dyn StdError>> {
    let calls = |space| record.moments.iter().filter(|moment| moment.space == space).count();
    let mut spaces: Vec<_> =
        record.spaces.iter().map(|named| (calls(named.space), named)).collect();
    spaces.sort_by_key(|(calls, named)| (std::cmp::Reverse(*calls), named.space));
    spaces.truncate(MOST);
    spaces.sort_by_key(|(_, named)| named.space);
    let mut svg = String::new();
    {
        let panels = u32::try_from(spaces.len()).unwrap_or(1).max(1);
        let picture =
            SVGBackend::with_string(&mut svg, (PANEL.0, PANEL.1 * panels)).into_drawing_area();
        picture.fill(&WHITE)?;
        let parts = picture.split_evenly((spaces.len().max(1), 1));
        for ((calls, named), panel) in spaces.iter().zip(&parts) {
            let title = format!("{}: {calls} calls", named.name);
            draw_space(record, named.space, &title, panel).map_err(|error| error.to_string())?;
        }
        picture.present()?;
    }
    Ok(std::fs::write(file, svg)?)
}

fn color(kind: Kind) -> RGBColor {
    match kind {
        Kind::Code => RGBColor(214, 39, 40),
        Kind::File => RGBColor(255, 187, 120),
        Kind::Anonymous => RGBColor(31, 119, 180),
        Kind::Shared => RGBColor(44, 160, 44),
        Kind::Stack => RGBColor(148, 103, 189),
        Kind::Nothing => RGBColor(220, 220, 220),
        Kind::Special => RGBColor(140, 86, 75),
    }
}

/// Addresses on an axis on which each range between two boundaries is as high as its size has
/// binary digits, so that both a page and a terabyte can be seen.
struct Axis {
    boundaries: Vec<usize>,
    heights: Vec<f64>,
}

impl Axis {
    fn of(ranges: impl Iterator<Item = Range<usize>>, mapped: &[Range<usize>]) -> Self {
        let ends: BTreeSet<usize> = ranges.flat_map(|range| [range.start, range.end]).collect();
        let boundaries: Vec<usize> = ends.into_iter().collect();
        let mut at = 0.0;
        let mut heights = vec![at];
        for pair in boundaries.windows(2) {
            let size = pair[1] - pair[0];
            let next = mapped.partition_point(|range| range.end <= pair[0]);
            let is_mapped = mapped.get(next).is_some_and(|range| range.start < pair[1]);
            let shown = if is_mapped { size } else { size.min(GAP) };
            at += UNIT * ((shown / 4096).max(1) as f64).log2() + UNIT;
            heights.push(at);
        }
        Self { boundaries, heights }
    }

    /// How high an address is: that of a boundary, or in proportion between two.
    fn height(&self, addr: usize) -> f64 {
        let next = self.boundaries.partition_point(|boundary| *boundary <= addr);
        let Some(below) = next.checked_sub(1) else { return 0.0 };
        let Some(end) = self.boundaries.get(next) else { return self.heights[below] };
        let (start, low, high) = (self.boundaries[below], self.heights[below], self.heights[next]);
        low + (high - low) * (addr - start) as f64 / (end - start) as f64
    }

    fn top(&self) -> f64 {
        self.heights.last().copied().unwrap_or(0.0).max(UNIT)
    }

    /// The boundary nearest to a height.
    fn addr(&self, height: f64) -> usize {
        let next = self.heights.partition_point(|other| *other < height);
        self.boundaries.get(next).or(self.boundaries.last()).copied().unwrap_or(0)
    }
}

/// The union of ranges, in order.
fn union(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

fn draw_space<'a>(
    record: &Record,
    space: usize,
    title: &str,
    panel: &Panel<'a>,
) -> Result<(), Box<dyn StdError + 'a>> {
    let spans = || record.spans.iter().filter(|span| span.space == space);
    let moments = || record.moments.iter().filter(|moment| moment.space == space);
    let mapped = union(spans().map(|span| span.range.clone()).collect());
    let axis = Axis::of(spans().map(|span| span.range.clone()), &mapped);
    let first = spans().map(|span| span.from).min().unwrap_or_default().as_secs_f64();
    let last = spans().map(|span| span.to).max().unwrap_or_default().as_secs_f64();
    let last = last.max(first + 1e-3);
    // Room for the legend.
    let right = first + (last - first) * 1.2;
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .margin_right(20)
        .x_label_area_size(30)
        .y_label_area_size(110)
        .build_cartesian_2d(first..right, 0.0..axis.top())?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_label_formatter(&|at| format!("{:.0} ms", at * 1e3))
        .y_label_formatter(&|height| format!("{:x}", axis.addr(*height)))
        .y_labels(8)
        .draw()?;
    for (kind, name) in Kind::ALL {
        let rectangles = spans().filter(|span| span.kind == kind).map(|span| {
            let left = (span.from.as_secs_f64(), axis.height(span.range.start));
            let right = (span.to.as_secs_f64(), axis.height(span.range.end));
            Rectangle::new([left, right], color(kind).filled())
        });
        let drawn = chart.draw_series(rectangles)?;
        drawn.label(name).legend(move |(x, y)| {
            Rectangle::new([(x, y - 5), (x + 10, y + 5)], color(kind).filled())
        });
    }
    // A colour for each thread.
    let threads: Vec<_> =
        moments().map(|moment| moment.tid).collect::<BTreeSet<_>>().into_iter().collect();
    for (number, tid) in threads.iter().enumerate() {
        let color = match number {
            0 => BLACK.to_rgba(),
            _ => Palette99::pick(number + FIRST_COLOR).to_rgba(),
        };
        let calls = moments().filter(|moment| moment.tid == *tid);
        let dots = calls.filter_map(|moment| {
            let at = (moment.at.as_secs_f64(), axis.height(moment.addr?));
            Some(Circle::new(at, 2, color.filled()))
        });
        let drawn = chart.draw_series(dots)?;
        // More would not fit.
        if number < MOST_NAMED {
            drawn
                .label(format!("call of {tid}"))
                .legend(move |(x, y)| Circle::new((x + 5, y), 2, color.filled()));
        }
    }
    let merges = moments().flat_map(|moment| {
        let at = moment.at.as_secs_f64();
        moment.merged.iter().map(move |addr| (at, *addr))
    });
    let rings = merges.map(|(at, addr)| Circle::new((at, axis.height(addr)), 4, BLACK));
    chart.draw_series(rings)?.label("merge").legend(|(x, y)| Circle::new((x + 5, y), 4, BLACK));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(union(vec![4..6, 0..2, 2..3, 5..9]), [0..3, 4..9]);
    }

    #[test]
    fn what_is_mapped_is_high_and_what_is_free_is_not() {
        let mapped = [0..1 << 30, 1 << 40..(1 << 40) + 4096];
        let axis = Axis::of(mapped.iter().cloned(), &mapped);
        let [start, end, next, top] =
            [0, 1 << 30, 1 << 40, (1 << 40) + 4096].map(|at| axis.height(at));
        assert_eq!((start, end, top), (0.0, 19.0, axis.top()));
        // A terabyte of nothing is as high as a mebibyte.
        assert_eq!((next - end, top - next), (9.0, 1.0));
        assert_eq!(axis.height(1 << 29), 9.5);
        assert_eq!((axis.addr(0.0), axis.addr(19.0)), (0, 1 << 30));
    }
}
