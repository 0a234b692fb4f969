//! In which order those that are compared take their turns.
//!
//! Whoever comes next finds what the one before left: freed memory, warm caches, and in the lab code that
//! is translated already. With the same order in each round one method would always gain by another. Williams'
//! design ("Experimental designs balanced for the estimation of residual effects of treatments", 1949) has
//! each follow each other equally often, in as many rounds as there are methods, or twice as many if their
//! number is odd.

/// Who comes when, from 0, in a round of `many`. The first round is in order.
pub fn turns(many: usize, round: usize) -> Vec<usize> {
    // 0, 1, n-1, 2, n-2, … : all distances from one to the next are different.
    let zigzag = |at: usize| if at % 2 == 1 { at.div_ceil(2) } else { (many - at / 2) % many };
    let mut names = vec![0; many];
    (0..many).for_each(|at| names[zigzag(at)] = at);
    let mut order: Vec<_> = (0..many).map(|at| names[(zigzag(at) + round) % many]).collect();
    if many % 2 == 1 && round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_takes_its_turn_and_follows_each_other_as_often() {
        assert_eq!(turns(6, 0), [0, 1, 2, 3, 4, 5]);
        assert!(turns(0, 3).is_empty());
        assert_eq!(turns(1, 5), [0]);
        for many in 2..9 {
            let mut after = BTreeMap::new();
            let rounds = if many % 2 == 0 { many } else { 2 * many };
            for round in 0..rounds {
                let order = turns(many, round);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..many).collect::<Vec<_>>());
                for pair in order.windows(2) {
                    *after.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            assert_eq!(after.len(), many * (many - 1), "{many}: {after:?}");
            let often = rounds / many;
            assert!(after.values().all(|&n| n == often), "{many}: {after:?}");
        }
    }
}
