//! The known word nearest to an unknown one. Takes words, gives the one that was probably meant, or none.

/// The candidate that `word` most probably was meant to be; `None` where nothing is near.
///
/// Dotted paths are compared as a whole and by their last part, so a key in the wrong section finds its own.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let last = last_part(&word);
    let best = candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let whole = distance(&word, &lower);
            // One more than equal, so that of two equal last parts the nearer path wins.
            let part = distance(last, last_part(&lower)).saturating_add(1);
            (whole.min(part), whole, candidate)
        })
        .min_by_key(|(near, whole, _)| (*near, *whole))?;
    let allowed = (last.chars().count() / 3).max(2);
    (best.0 <= allowed).then_some(best.2)
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Insertions, removals and replacements of a character, and swaps of two neighbours, that lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replace = last[j] + usize::from(a[i] != b[j]);
            let mut least = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before_last[j - 1] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 4] =
        ["flowExporter.enable", "flowExporter.idleFlowExportTimeout", "flowExporter.activeFlowExportTimeout", "tls.ca"];

    #[test]
    fn slips_of_the_hand_find_their_key() {
        assert_eq!(nearest("flowExporter.activFlowExportTimeuot", KEYS), Some(KEYS[2]));
        assert_eq!(nearest("flowexporter.ENABLE", KEYS), Some(KEYS[0]));
        assert_eq!(nearest("tls.idleFlowExportTimeout", KEYS), Some(KEYS[1]));
        assert_eq!(nearest("enabled", KEYS), Some(KEYS[0]));
    }

    #[test]
    fn what_is_far_from_all_finds_none() {
        assert_eq!(nearest("colour", KEYS), None);
        assert_eq!(nearest("", KEYS), None);
        assert_eq!(nearest("x", []), None);
    }
}
