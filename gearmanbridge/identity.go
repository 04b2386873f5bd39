package gearmanbridge

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

// plainUnique are uniques that are fit to be the name of an object and a Pod as they are; Zuul's (32 hexadecimal digits) among them. 52 leaves room
// in a label and in names made from this one.
var plainUnique = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$`)

// hashedName are names that buildName makes, so no unique may claim one.
var hashedName = regexp.MustCompile(`^unique-[0-9a-f]{40}$`)

// buildName is the name of the ZuulBuild of a Gearman unique: two uniques never share a name, and a unique has the same name wherever and whenever
// it is seen. A stranger's unique decides nothing but this name, and nothing at all unless it is a plain one.
func buildName(unique string) string {
	if plainUnique.MatchString(unique) && !hashedName.MatchString(unique) {
		return unique
	}
	sum := sha256.Sum256([]byte(unique))
	return "unique-" + hex.EncodeToString(sum[:20])
}
