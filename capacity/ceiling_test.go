package capacity

import "testing"

func TestCeiling(t *testing.T) {
	ceiling := NewCeiling(5)
	heard := []int{}
	stop := ceiling.OnChange(func() { heard = append(heard, ceiling.Builds()) })
	for _, builds := range []int{5, 3, 3, 8} {
		ceiling.Set(builds)
	}
	stop()
	ceiling.Set(1)
	if len(heard) != 2 || heard[0] != 3 || heard[1] != 8 {
		t.Errorf("heard of %v, not of 3 and 8", heard)
	}
	if ceiling.Builds() != 1 {
		t.Errorf("it is %d, not 1", ceiling.Builds())
	}
}
