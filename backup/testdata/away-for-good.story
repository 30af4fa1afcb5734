# It does not come back: once the promised time is over, silence is what it always was.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> away 5s
    agree to wait 5s
> lost
> wait 4s
> wait 2s
    load
    propose takeover (generation 1, revision 2, epoch 2)
