package config

// Nearest returns the word that is most similar to a mistyped one, or "" when none is
// similar.
func Nearest(typed string, words []string) string {
	// One slip for each three letters: more would be guessing.
	best, nearest := 1+len(typed)/3, ""
	for _, word := range words {
		if d := distance(typed, word); d < best {
			best, nearest = d, word
		}
	}
	return nearest
}

// distance is the number of letters to insert, drop, change or swap with their
// neighbour that make a of b (optimal string alignment distance).
func distance(a, b string) int {
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	before, above, row := rows[0], rows[1], rows[2]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, above, row = above, row, before
		row[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(above[j+1]+1, row[j]+1, above[j]+change)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
