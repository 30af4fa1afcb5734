# Forced without an image, without a whole one, and after the log went on.
> forced
    answer: there is no whole image here
> hello 1
    prepare a new image
> sync 1
    commit
> forced
    answer: there is no whole image here
> checkpoint 2
    commit
> forced
    drop: an operator forces a failover
    load
    propose force (generation 1, revision 1, epoch 2)
> forced
    answer: a takeover is being asked for already
> log pause
> applied
    warn: force: ownership of web: force by b refused: it was meant for generation 1 revision 1, the log is at generation 1 revision 2
    answer: ownership of web: force by b refused: it was meant for generation 1 revision 1, the log is at generation 1 revision 2
