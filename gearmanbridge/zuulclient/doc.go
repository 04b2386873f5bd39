// Package zuulclient is the other side of the protocol: it submits builds,
// follows and cancels them as the Gearman launcher of Zuul v2 does, and
// understands a worker's packets exactly as that launcher would, with its
// weaknesses. Tests, the demonstration and `zuulbuild submit` share it.
//
// What Zuul makes of a build is in [State]. What a worker did that Zuul, or
// some release of it, does not stand is in State.Violations; a good worker
// has none.
//
// The source of its rules is zuul/launcher/gearman.py of the releases 2.0.0 to
// 2.6.0 ([Zuul2]) and of the branch feature/gearman before them ([Branch]).
package zuulclient
