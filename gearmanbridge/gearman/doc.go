// Package gearman speaks the Gearman protocol: packets, a worker that keeps
// itself connected, a client, the text administration protocol and a small
// server for tests and demonstrations.
//
// It is written for workers whose jobs are long, many and valuable. Three
// rules shape it:
//
//   - A job handle belongs to the one TCP connection that brought it. Servers
//     reuse handles after a restart, so a [Job] can never write to another
//     connection than its own.
//   - Each assigned job gets exactly one finishing packet, or its connection
//     is gone.
//   - Capacity is governed by not grabbing. A worker that is full is silent:
//     it sends neither GRAB_JOB_UNIQ nor PRE_SLEEP, and it never unregisters
//     a function to slow the server down.
//
// A worker uses only what both the C gearmand and Zuul's geard understand:
// CAN_DO, CANT_DO, GRAB_JOB_UNIQ, PRE_SLEEP, SET_CLIENT_ID, GET_STATUS and the
// WORK_* packets. [Admin.Behaviour] tells the two servers apart.
//
// Worker, Job, Client, Task and Server are safe for concurrent use. Admin is
// too, one command at a time.
package gearman
