package sqlprobe

import (
	"database/sql"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Value is the value that a column must have.
type Value struct {
	// Column is the name of the column, in upper or lower case.
	Column string

	// Text is the value as text. White space around it is ignored; numbers are
	// compared as such, and true and false with what the server has for them. A time
	// is "2006-01-02 15:04:05", in the zone in which the server sends it.
	Text string

	// Null requires NULL instead.
	Null bool
}

func (v Value) String() string {
	if v.Null {
		return v.Column + "=NULL"
	}
	return v.Column + "=" + v.Text
}

// column is what is used of a [sql.ColumnType].
type column interface {
	Name() string
	DatabaseTypeName() string
}

// positions returns the column of each value.
func positions[C column](columns []C, values []Value) ([]int, error) {
	at := make([]int, len(values))
	for i, v := range values {
		at[i] = slices.IndexFunc(columns, func(c C) bool { return strings.EqualFold(c.Name(), v.Column) })
		if at[i] < 0 {
			names := make([]string, len(columns))
			for i, c := range columns {
				names[i] = c.Name()
			}
			return nil, fmt.Errorf("the result has no column %q: it has %q", v.Column, names)
		}
	}
	return at, nil
}

// hasAll reports whether a row has all values.
func hasAll(row []any, columns []*sql.ColumnType, at []int, values []Value) bool {
	for i, v := range values {
		if !v.matches(row[at[i]], columns[at[i]].DatabaseTypeName()) {
			return false
		}
	}
	return true
}

// matches reports whether a column of a type of the server has the value.
func (v Value) matches(got any, kind string) bool {
	if got == nil || v.Null {
		return got == nil && v.Null
	}
	if b, ok := got.(bool); ok {
		want, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(v.Text)))
		return err == nil && want == b
	}
	is, want := strings.TrimSpace(text(got, kind)), strings.TrimSpace(v.Text)
	return is == want || sameNumber(is, want)
}

// text returns a value of package sql as text.
func text(got any, kind string) string {
	switch got := got.(type) {
	case []byte:
		if kind == "BIT" && len(got) <= 8 { // MySQL sends its bytes
			n := uint64(0)
			for _, b := range got {
				n = n<<8 | uint64(b)
			}
			return strconv.FormatUint(n, 10)
		}
		return string(got)
	case float64:
		return strconv.FormatFloat(got, 'f', -1, 64)
	case time.Time:
		return got.Format("2006-01-02 15:04:05.999999999")
	}
	return fmt.Sprint(got)
}

// decimal limits the digits, since big.Rat takes as much time and memory as they need.
// It is compiled when a number is compared, since it is large.
var decimal = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[+-]?[0-9]{1,100}(\.[0-9]{1,100})?$`)
})

// sameNumber reports whether two texts are the same decimal number.
func sameNumber(a, b string) bool {
	if !decimal().MatchString(a) || !decimal().MatchString(b) {
		return false
	}
	x, ok1 := new(big.Rat).SetString(a)
	y, ok2 := new(big.Rat).SetString(b)
	return ok1 && ok2 && x.Cmp(y) == 0
}
