# The operator has read the log, which is ahead of what is known here: what he asks
# for is meant for what he has read.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> log pause unseen
> forced
    load
    propose force (generation 1, revision 3, epoch 2)
