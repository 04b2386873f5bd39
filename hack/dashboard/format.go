package dashboard

import (
	"math"
	"strconv"
)

// units are how values of Grafana's units are written, of those that are known here.
var units = map[string]func(float64) string{
	"":            number,
	"none":        number,
	"short":       func(value float64) string { return scaled(value, 1000, "", " K", " Mil", " Bil") },
	"percent":     func(value float64) string { return number(value) + "%" },
	"percentunit": func(value float64) string { return number(100*value) + "%" },
	"bytes":       func(value float64) string { return scaled(value, 1024, " B", " KiB", " MiB", " GiB", " TiB") },
	"decbytes":    func(value float64) string { return scaled(value, 1000, " B", " kB", " MB", " GB", " TB") },
	"s":           seconds,
	"ms":          func(value float64) string { return seconds(value / 1000) },
	"reqps":       func(value float64) string { return number(value) + " req/s" },
	"ops":         func(value float64) string { return number(value) + " ops/s" },
	"cps":         func(value float64) string { return number(value) + " c/s" },
	"cpm":         func(value float64) string { return number(value) + " c/m" },
}

// format writes a value in a unit; in one that is not known, as a number.
func format(unit string, value float64) string {
	if write := units[unit]; write != nil {
		return write(value)
	}
	return number(value)
}

// number writes three digits, and all of those before the point.
func number(value float64) string {
	if value == 0 {
		return "0"
	}
	scale := math.Pow(10, max(0, 2-math.Floor(math.Log10(math.Abs(value)))))
	return strconv.FormatFloat(math.Round(value*scale)/scale, 'f', -1, 64)
}

// scaled writes a value in the largest of units, each `factor` times the one before, of which there is a whole one.
func scaled(value, factor float64, units ...string) string {
	i := 0
	for math.Abs(value) >= factor && i < len(units)-1 {
		value /= factor
		i++
	}
	return number(value) + units[i]
}

// seconds writes a duration as Grafana does.
func seconds(value float64) string {
	switch size := math.Abs(value); {
	case size == 0:
		return "0 s"
	case size < 1e-3:
		return number(value*1e6) + " µs"
	case size < 1:
		return number(value*1e3) + " ms"
	case size < 60:
		return number(value) + " s"
	case size < 3600:
		return number(value/60) + " min"
	default:
		return number(value/3600) + " hour"
	}
}
