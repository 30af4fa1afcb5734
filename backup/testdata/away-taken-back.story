# It stays after all: nothing is promised any more.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> away 5s
    agree to wait 5s
> away 0s
> lost
> wait 300ms
    load
    propose takeover (generation 1, revision 2, epoch 2)
